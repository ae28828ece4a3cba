"""Loads the compiled kernels, by measuring a few weights on import: what a worker is forked from."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from unforgotten.audit.kernel.simd import available_paths
from unforgotten.audit.weights.warming import WARM_FORMATS, measure_sample
from unforgotten.theory.formats.names import format_named

for names in WARM_FORMATS:
    measure_sample((ml_dtypes.bfloat16, np.float32), [format_named(name) for name in names], available_paths()[0])

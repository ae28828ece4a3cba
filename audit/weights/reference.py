"""One tensor of a pair by the numpy reference of `theory.laws.update`: what small pairs take, as nothing is compiled for it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.weights.batches import Work
from unforgotten.audit.weights.sums import Setting, TensorMeasured
from unforgotten.audit.weights.task import NotFiniteError, check_formats, refusing
from unforgotten.theory.geometry.dead_zone import count_binades
from unforgotten.theory.laws.update import GRID_MODES, Survival, survival

Array = NDArray[Any]


def measure_by_reference(work: Work, name: str) -> TensorMeasured:
    """Measure a tensor in every format, whole and in this process.

    Raises:
        RefusedError: the tensor is empty, or a format cannot take it.
        NotFiniteError: a weight is nan or inf.
        CheckpointError: a file changed since it was opened.
    """
    pair = work.target, work.unlearned
    formats = work.formats_of(name)
    check_formats(pair[0].tensors[name].shape, formats)
    w, w_new = (_float32(checkpoint.read(name)) for checkpoint in pair)
    if not (np.isfinite(w).all() and np.isfinite(w_new).all()):
        raise NotFiniteError
    found: dict[Setting, Survival] = {}
    for fmt in formats:
        with refusing(fmt):
            for mode in GRID_MODES:
                found[Setting(fmt.name, mode)] = survival(w, w_new, fmt, mode)
    for checkpoint in pair:
        checkpoint.check(name)
    return TensorMeasured(
        binades=count_binades(w, w_new),
        in_bfloat16=_holds(np.dtype(ml_dtypes.bfloat16), w_new),
        in_float16=_holds(np.dtype(np.float16), w_new),
        survival=found,
    )


def _float32(raw: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling nan warns before it is found
        return np.asarray(raw, np.float32)


def _holds(dtype: np.dtype[Any], w: Array) -> bool:
    """Return whether a narrow dtype has every one of these float32 numbers."""
    with np.errstate(over="ignore", under="ignore"):
        return bool(np.array_equal(w.astype(dtype).astype(np.float32), w))

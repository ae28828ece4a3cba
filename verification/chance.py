"""Statistical assertions with both errors stated: samples repeat, bounds are exact inequalities, nothing is retried."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM = 1e-10


def rng_for(*parameters: object) -> np.random.Generator:
    """A generator seeded by the parameters, so that an example of Hypothesis always draws the same samples."""
    digest = hashlib.sha256(repr(parameters).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def hoeffding_radius(trials: int) -> float:
    """P[|mean - E mean| >= radius] <= FALSE_ALARM for independent trials in [0, 1] (Hoeffding 1963, thm 1)."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * trials))


def detectable_gap(trials: int) -> float:
    """A gap that a test of size FALSE_ALARM sees with probability 1 - FALSE_ALARM: twice the radius."""
    return 2 * hoeffding_radius(trials)


def assert_mean(samples: NDArray[Any], expected: float, *, slack: float = 0.0) -> None:
    """Samples in [0, 1] have mean `expected`, but for a named numerical `slack`."""
    gap = abs(float(np.mean(samples)) - expected)
    allowed = hoeffding_radius(samples.size) + slack
    assert gap <= allowed, f"mean is {gap:.3g} from {expected:.6g}, allowed {allowed:.3g}"

"""Statistical assertions with both errors stated: samples repeat, bounds are exact inequalities, nothing is retried.

One comparison fails by chance with probability FALSE_ALARM at most. Comparisons are counted, so that a report can
state the union bound of a whole run; it must stay below FAMILY_FALSE_ALARM.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM = 1e-10
FAMILY_FALSE_ALARM = 1e-6
SEED_VARIABLE = "UNFORGOTTEN_SEED"
COUNTS: Counter[str] = Counter()  # "comparisons" made in this process


def sample_seed() -> int:
    """Read the seed of every sample from the environment; 0 where it says nothing.

    Raises:
        ValueError: it is no number.
    """
    text = os.environ.get(SEED_VARIABLE, "0")
    if not text.isdecimal():
        raise ValueError(f"{SEED_VARIABLE} must be a number, got {SEED_VARIABLE}={text!r}")
    return int(text)


def rng_for(*parameters: object) -> np.random.Generator:
    """Return a generator seeded by the parameters, so that an example of Hypothesis always draws the same samples.

    Another UNFORGOTTEN_SEED draws others: a test that passes under one seed by luck fails under the next.
    """
    seed = sample_seed()
    key = ("seed", seed, *parameters) if seed else parameters
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def hoeffding_radius(trials: int) -> float:
    """Return r with P[|mean - E mean| >= r] <= FALSE_ALARM for independent trials in [0, 1] (Hoeffding 1963, thm 1)."""
    COUNTS["comparisons"] += 1
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * trials))


def detectable_gap(trials: int) -> float:
    """Return a gap that a test of size FALSE_ALARM sees with probability 1 - FALSE_ALARM: twice the radius."""
    return 2 * hoeffding_radius(trials)


def bernstein_radius(variance: float, trials: int, *, looks: int = 1) -> float:
    """Return r with P[|mean - E mean| >= r] <= FALSE_ALARM, trials in [0, 1] (Maurer & Pontil 2009, thm 4, both sides).

    Smaller than Hoeffding's where the variance is.

    Args:
        variance: variance of the sample, over trials - 1.
        trials: number of trials, at least 2.
        looks: number of times that a growing sample may be looked at; the false alarm is that of all of them.
    """
    COUNTS["comparisons"] += 1
    log = math.log(4 * looks / FALSE_ALARM)
    return math.sqrt(2 * variance * log / trials) + 7 * log / (3 * (trials - 1))


def assert_mean(samples: NDArray[Any], expected: float, *, slack: float = 0.0) -> None:
    """Assert that samples in [0, 1] have mean `expected`, but for a named numerical `slack`."""
    gap = abs(float(np.mean(samples)) - expected)
    allowed = hoeffding_radius(samples.size) + slack
    assert gap <= allowed, f"mean is {gap:.3g} from {expected:.6g}, allowed {allowed:.3g}"

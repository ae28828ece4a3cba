"""The exact interval of a share that was counted."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import beta


class ShareInterval(NamedTuple):
    """Ends of the interval of a share, 0 <= low <= high <= 1."""

    low: float
    high: float


def clopper_pearson(hits: int, count: int, tail: float) -> ShareInterval:
    """Return the ends beyond which the share of independent trials lies with probability at most `tail` each.

    Clopper and Pearson 1934: quantiles of beta distributions. Never too short, [0, 1] for no trial.

    Args:
        hits: trials that succeeded, 0 <= hits <= count.
        count: trials, >= 0.
        tail: probability of an error on either side, in (0, 1).

    Raises:
        ValueError: an argument is outside of its range.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"hits must be from 0 to count, got hits={hits} and count={count}")
    if not 0 < tail < 1:
        raise ValueError(f"tail must be in (0, 1), got tail={tail}")
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return ShareInterval(low, high)

"""T12: does the update avoid the thresholds (washed), or aim at them?

Takes counted flips and what chance expects of them; gives a z and a p-value that is never too small.

>>> found = wash_test(flips=20, expected=50.0, variance=45.0, weights=1000)
>>> round(found.z, 2), found.p < 1e-4
(-4.47, True)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53
EXACT_OPERATIONS = 10**9  # of the exact law: some seconds
PERMUTATIONS = 999


class WashTest(NamedTuple):
    """`z` is negative where fewer codes flipped than chance would; `p` bounds both sides from above."""

    z: float
    p: float


@claim("T12", kind="law", source="Hoeffding 1963, thm 1, for sums of independent Bernoulli variables")
def wash_test(flips: int, expected: float, variance: float, weights: int) -> WashTest:
    """Under U the flips are a sum of independent Bernoulli(p_i): z = (flips - sum p_i) / sqrt(sum p_i (1 - p_i)).

    `p` is no approximation: P[mean >= x] <= exp(-n KL(x || mean p)) holds for unequal p_i; both sides, doubled. Of
    real weights U holds to some per cent, which many weights tell from exactly: there p below 0.01 is no rarity, and
    needs a limit on the ratio of the counts, or a permutation test, beside it.

    Args:
        flips: observed flips.
        expected: sum of p_i.
        variance: sum of p_i (1 - p_i).
        weights: number of weights, > 0.

    Returns:
        z (nan where nothing can flip) and a p-value that is never too small.
    """
    if weights <= 0:
        raise ValueError(f"weights must be positive, got weights={weights}")
    z = (flips - expected) / math.sqrt(variance) if variance > 0 else math.nan
    log_p = math.log(2) - weights * bernoulli_divergence(flips / weights, expected / weights)
    return WashTest(z, math.exp(min(0.0, log_p)))


@claim("T12", kind="law", source="recursion of the Poisson-binomial law; doubled one-sided p-value")
def exact_wash_test(flips: int, probabilities: NDArray[Any]) -> WashTest:
    """P = min(1, 2 min(P[S <= flips], P[S >= flips])), S = sum of independent Bernoulli(p_i): the law itself.

    Assumption U gives the p_i (T6). Where the law costs more than EXACT_OPERATIONS, n (min(flips, n - flips) + 1), it is
    Hoeffding's bound of `wash_test`, which is larger. Either way p is never too small.

    Args:
        flips: observed flips, 0 … n.
        probabilities: p_i in [0, 1], (n,), n >= 1. Those of 0 and of 1 count as they are.

    Returns:
        z (nan where nothing can flip or stay by chance) and p.

    Raises:
        ValueError: there is no weight, a probability is outside [0, 1], or flips outside 0 … n.
    """
    p = np.asarray(probabilities, np.float64).ravel()
    if p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities must be in [0, 1] and not empty, got shape={p.shape}")
    if not 0 <= flips <= p.size:
        raise ValueError(f"flips must be in [0, {p.size}], got flips={flips!r}")
    bound = wash_test(flips, math.fsum(p), math.fsum(p * (1 - p)), p.size)
    if p.size * (min(flips, p.size - flips) + 1) > EXACT_OPERATIONS:
        return bound
    lower, upper = poisson_binomial_tails(flips, p)
    return WashTest(bound.z, min(1.0, 2 * min(lower, upper)))


def poisson_binomial_tails(count: int, probabilities: NDArray[Any]) -> tuple[float, float]:
    """Return P[S <= count] and P[S >= count] for independent Bernoulli(p_i), rounded up: sums of terms >= 0 only.

    Args:
        count: number of successes, 0 … n.
        probabilities: p_i in [0, 1], (n,).
    """
    p = np.asarray(probabilities, np.float64)
    if 2 * count > p.size:  # the law of what stays, with p itself: 1 - (1 - p) would lose a small p
        lower, upper = _tails(p.size - count, 1 - p, p)
        return upper, lower
    return _tails(count, p, 1 - p)


def _tails(count: int, move: NDArray[Any], stay: NDArray[Any]) -> tuple[float, float]:
    n = len(move)
    law = np.zeros(count + 2)  # P[S = 0 … count], and what is beyond, which no step leaves
    law[0] = 1.0
    for p, q in zip(move.tolist(), stay.tolist(), strict=True):
        moved = law[:-1] * p
        law[:-1] *= q
        law[1:] += moved
    # 4 roundings a weight and a sum of at most n + 2; a term below the normal range loses at most 2^-1022
    slack = 1 + (4 * n + count + 16) * U64
    lost = (n + 2) ** 2 * 2.0**-1022
    lower, upper = math.fsum(law[:-1]) * slack + lost, math.fsum(law[-2:]) * slack + lost
    return min(1.0, lower), min(1.0, upper)


@claim("T12", kind="exact", source="permutation test with the identity counted; Phipson & Smyth 2010")
def permutation_wash_test(
    v: NDArray[Any],
    shift: NDArray[Any],
    strata: NDArray[Any],
    thresholds: NDArray[Any],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
    step: NDArray[Any] | None = None,
) -> WashTest:
    """P = min(1, 2 min_side (1 + #{permutations as extreme}) / (1 + permutations)), shifts permuted within strata.

    Needs no U: exact if the shifts of a stratum are exchangeable given the weights, on a fixed grid. Strata must have
    one step, so a block, or all blocks of one scale, unless `step` is given; with the code in the stratum too the
    updates may depend on the size of the weight, as storage in bfloat16 makes them (T4), and only their place *within*
    the cell is tested.
    The smallest possible p is 2 / (1 + permutations).

    Args:
        v: weights in code units, (n,), n >= 1.
        shift: their updates in code units, (n,).
        strata: stratum of each weight, integers, (n,).
        thresholds: thresholds of the format in code units, ascending; a tie goes to the lower level.
        seed: seed of the permutations.
        permutations: number of permutations, >= 1.
        step: step of each weight, (n,), not 0; `shift` is then in the units of the weights, its place takes this step.

    Returns:
        z, against the permutations' mean and spread (nan where no permutation differs), and p.

    Raises:
        ValueError: the shapes differ, a number is not finite, or there is no weight or permutation.
    """
    if not (v.ndim == 1 and v.size and v.shape == shift.shape == strata.shape):
        raise ValueError(f"v, shift and strata must be equal vectors, got {v.shape}, {shift.shape}, {strata.shape}")
    if not (np.isfinite(v).all() and np.isfinite(shift).all()):
        raise ValueError("v and shift must be finite, got nan or inf")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got permutations={permutations!r}")
    rng = np.random.default_rng(seed)
    home = np.argsort(strata, kind="stable")
    # in the order of the strata, a permutation within each is a sort by (stratum, chance)
    v, shift, strata = v[home], shift[home], strata[home]
    unit = np.ones(v.shape) if step is None else _checked_step(step, v)[home]
    codes = np.searchsorted(thresholds, v)

    def flips_of(moved: NDArray[Any]) -> int:
        return int(np.count_nonzero(np.searchsorted(thresholds, v + moved / unit) != codes))

    shuffled = (shift[np.lexsort((rng.random(v.size), strata))] for _ in range(permutations))
    flips = np.array([flips_of(shift), *(flips_of(moved) for moved in shuffled)])
    fewer, more = (flips <= flips[0]).mean(), (flips >= flips[0]).mean()
    spread = float(flips[1:].std())
    z = float(flips[0] - flips[1:].mean()) / spread if spread > 0 else math.nan
    return WashTest(z, min(1.0, 2 * float(min(fewer, more))))


def _checked_step(step: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    if step.shape != v.shape or np.isnan(step).any() or not step.all():
        raise ValueError(f"step must be one number a weight, not 0 or nan, got shape={step.shape}")
    return step


def bernoulli_divergence(x: float, p: float) -> float:
    """Return KL(Bernoulli(x) || Bernoulli(p)) in nats; inf where p excludes x."""
    p = min(max(p, 0.0), 1.0)
    total = 0.0
    for a, b in ((x, p), (1.0 - x, 1.0 - p)):
        if a > 0:
            total += a * (math.log(a) - math.log(b)) if b > 0 else math.inf  # a / b may overflow
    return max(total, 0.0)

"""Membership tests: how well a score, Min-K % above all, tells forget texts from texts that no model saw, and M3, which compares two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from unforgotten.records.store import Measurement

BOOTSTRAPS = 1_000
U64 = 2.0**-53
LEAST_AUC = 0.1
"""AUC of the retrained model from which M3 is a percentage of it; below, a small change of the AUC is a huge one of M3."""


def min_k(scores: Sequence[Tensor], share: float) -> list[float]:
    """Return the mean of the `share` least likely token log-probabilities of each text; `scores` as of `token_scores`."""
    ordered = (text.sort().values for text in scores)
    return [float(text[: max(1, int(share * len(text)))].double().mean()) for text in ordered]


def membership_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Return P[score(holdout) > score(forget)], ties half."""
    truth = [0] * len(forget) + [1] * len(holdout)
    return float(roc_auc_score(truth, [*forget, *holdout]))


def privacy_leakage(
    scores: Sequence[float], retrained: Sequence[float], forget_count: int, *, seed: int
) -> list[Measurement]:
    """Return the AUC, M3 against the retrained model's scores on the same texts, and the difference of the two AUCs.

    M3 has no value, nan, where the retrained model's AUC is below LEAST_AUC; the difference always has one.

    Args:
        scores: Min-K % of the forget texts, then of the holdout texts.
        retrained: Min-K % of the same texts under the retrained model.
        forget_count: number of the forget texts.
        seed: seed of the bootstrap, which draws the same texts for both models.
    """
    n, m = forget_count, len(scores) - forget_count
    wins, base_wins = (_wins(np.asarray(x), n) for x in (scores, retrained))
    rng = np.random.default_rng(seed)
    aucs, leaks, gaps = [], [], []
    for _ in range(BOOTSTRAPS):
        drawn = np.ix_(rng.integers(n, size=n), rng.integers(m, size=m))
        auc, base = wins[drawn].mean(), base_wins[drawn].mean()
        aucs.append(auc)
        gaps.append(auc - base)
        if base:  # M3 has no value against an AUC of 0
            leaks.append(100.0 * (auc - base) / base)
    auc = membership_auc(scores[:n], scores[n:])
    base = membership_auc(retrained[:n], retrained[n:])
    defined = base >= LEAST_AUC
    leak = 100.0 * (auc - base) / base if defined else float("nan")
    spread = float(np.std(leaks, ddof=1)) if defined else None
    return [
        Measurement("auc", auc, float(np.std(aucs, ddof=1)), len(scores), tuple(scores)),
        Measurement("M3", leak, spread, len(scores)),
        Measurement("auc_gap", auc - base, float(np.std(gaps, ddof=1)), len(scores)),
    ]


def found_share(forget: NDArray[np.float64], holdout: NDArray[np.float64], allowed: float) -> NDArray[np.float64]:
    """Return the largest share of forget scores above a threshold that at most `allowed` of the holdout scores are above.

    Args:
        forget: scores, the higher the likelier a member, (..., n).
        holdout: scores, (..., m).
        allowed: share of the holdout scores that may be above, at least 0 and below 1.

    Raises:
        ValueError: `allowed` is not in its range.
    """
    if not 0 <= allowed < 1:
        raise ValueError(f"allowed must be at least 0 and below 1, got allowed={allowed}")
    m = holdout.shape[-1]
    above = int(allowed * m + U64 * m)  # of 100 texts, 1 % is one, whatever the product rounds to
    threshold = np.sort(holdout, axis=-1)[..., m - 1 - above]
    return np.asarray((forget > threshold[..., None]).mean(-1))


def attack_auc(name: str, scores: Sequence[float], forget_count: int, *, seed: int) -> Measurement:
    """Return P[score(forget) > score(holdout)], ties half, with the standard error of a bootstrap of both sets of texts.

    Args:
        name: name of the row.
        scores: scores of the forget texts, then of the holdout texts.
        forget_count: number of the forget texts.
        seed: seed of the bootstrap.
    """
    n, m = forget_count, len(scores) - forget_count
    wins = 1.0 - _wins(np.asarray(scores, np.float64), n)
    rng = np.random.default_rng(seed)
    means = [wins[np.ix_(rng.integers(n, size=n), rng.integers(m, size=m))].mean() for _ in range(BOOTSTRAPS)]
    return Measurement(name, float(wins.mean()), float(np.std(means, ddof=1)), len(scores), tuple(scores))


def attack_rate(name: str, scores: Sequence[float], forget_count: int, allowed: float, *, seed: int) -> Measurement:
    """Return `found_share` with the standard error of a bootstrap of both sets of texts; arguments as of `attack_auc`."""
    forget, holdout = np.split(np.asarray(scores, np.float64), [forget_count])
    rng = np.random.default_rng(seed)
    draws, others = (rng.choice(x, (BOOTSTRAPS, len(x))) for x in (forget, holdout))
    spread = float(np.std(found_share(draws, others, allowed), ddof=1))
    return Measurement(name, float(found_share(forget, holdout, allowed)), spread, len(scores))


def _wins(scores: NDArray[np.float64], forget_count: int) -> NDArray[np.float64]:
    """Return who wins each pair (forget, holdout): 1 the holdout text, 0.5 a tie; its mean is the AUC."""
    forget, holdout = scores[:forget_count, None], scores[None, forget_count:]
    return np.where(holdout == forget, 0.5, holdout > forget)

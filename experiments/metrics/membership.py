"""The membership test: how well Min-K % tells forget texts from texts that no model saw, and M3, which compares two models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from unforgotten.records.store import Measurement

BOOTSTRAPS = 1_000
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


def _wins(scores: NDArray[np.float64], forget_count: int) -> NDArray[np.float64]:
    """Return who wins each pair (forget, holdout): 1 the holdout text, 0.5 a tie; its mean is the AUC."""
    forget, holdout = scores[:forget_count, None], scores[None, forget_count:]
    return np.where(holdout == forget, 0.5, holdout > forget)

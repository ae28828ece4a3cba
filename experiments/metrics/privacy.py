"""auc, auc_gap and M3, privacy leakage: 100 (AUC - AUC_retrained) / AUC_retrained, AUC = P[MinK(holdout) > MinK(forget)].

Min-K % is over the tokens of the text after its start tokens. An end token is none of them, as in MUSE: this holds from
the revision after 0.1.0+src.e8a72f452c72 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import Metric, Need
from unforgotten.records.metrics import METRICS as MEANINGS

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes
    from unforgotten.records.store import Measurement


def membership_scores(model: Examined, settings: Measuring) -> list[float]:
    """Return Min-K % of the forget passages, then of the holdout texts."""
    from unforgotten.experiments.metrics.membership import min_k

    scores = [*model.token_scores("passages"), *model.token_scores("holdout")]
    return min_k(scores, settings.evaluation.min_k)


def membership_losses(model: Examined) -> list[float]:
    """Return the loss, nats a token, of the forget passages, then of the holdout texts."""
    from unforgotten.experiments.metrics.losses import loss_items

    return loss_items([*model.token_scores("passages"), *model.token_scores("holdout")])


def _leakage(model: Examined, probes: Probes, settings: Measuring) -> list[Measurement]:
    from unforgotten.experiments.metrics.membership import privacy_leakage

    scores = membership_scores(model, settings)
    return privacy_leakage(scores, model.retrained_scores or scores, len(probes.passages), seed=settings.seed)


def _auc(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
    return _leakage(model, probes, settings)[0]


def _leak(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
    return _leakage(model, probes, settings)[1]


def _gap(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
    return _leakage(model, probes, settings)[2]


RETRAINED = frozenset[Need]({"retrained"})
METRICS = (
    Metric("auc", MEANINGS["auc"], _auc),
    Metric("M3", MEANINGS["M3"], _leak, RETRAINED),
    Metric("auc_gap", "auc minus that of the retrained model; 0 is ideal", _gap, RETRAINED),
)

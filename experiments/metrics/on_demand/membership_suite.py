"""The membership suite: five attacks that call forget passages members and holdout texts none, each by a score of a text.

The scores, the higher the likelier a member, from the mean log-probability l of a text's tokens:

- loss: l (Yeom et al. 2018);
- min_k: mean of the least likely tokens (Shi et al. 2023), as in M3;
- min_k_plus_plus: of those that stand lowest (Zhang et al. 2024, arXiv 2404.02936);
- zlib: l over the bytes of the text that zlib compressed (Carlini et al. 2021, arXiv 2012.07805);
- reference: l minus that of the retrained model, the log likelihood ratio a token (Carlini et al. 2021), where there is one.

Rows of each attack: `mia_ATTACK_auc` = P[score(forget) > score(holdout)], ties half, and `mia_ATTACK_tpr_X`, the share of
forget passages that the attack finds while it calls at most X % of the holdout texts members (Carlini et al. 2022, arXiv
2112.03570). With fewer than 100 holdout texts 1 % means none of them. 0.5, and 0.01 or 0.05, are chance. `auc` is the other
way round: it is 1 minus `mia_min_k_auc`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import Metric, Need

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes
    from unforgotten.records.store import Measurement

Scores = list[float]
"""Scores of the forget passages, then of the holdout texts."""


def _loss(model: Examined, settings: Measuring) -> Scores:
    from unforgotten.experiments.metrics.privacy import membership_losses

    return [-loss for loss in membership_losses(model)]


def _min_k(model: Examined, settings: Measuring) -> Scores:
    from unforgotten.experiments.metrics.privacy import membership_scores

    return membership_scores(model, settings)


def _min_k_plus_plus(model: Examined, settings: Measuring) -> Scores:
    from unforgotten.experiments.metrics.on_demand.min_k_plus_plus import scores_of

    return scores_of(model, [*model.probes.passages, *model.probes.holdout], settings)


def _zlib(model: Examined, settings: Measuring) -> Scores:
    texts = [model.decode(tokens) for tokens in (*model.probes.passages, *model.probes.holdout)]
    return [score / compressed_bytes(text) for score, text in zip(_loss(model, settings), texts, strict=True)]


def _reference(model: Examined, settings: Measuring) -> Scores:
    if model.retrained_losses is None:
        raise ValueError("retrained_losses must be there for the reference attack, got None")
    return [loss + own for loss, own in zip(model.retrained_losses, _loss(model, settings), strict=True)]


def compressed_bytes(text: str) -> int:
    """Count the bytes of a text that zlib compressed at its default level."""
    return len(zlib.compress(text.encode("utf-8")))


ATTACKS: Mapping[str, Callable[[Examined, Measuring], Scores]] = {
    "loss": _loss,
    "min_k": _min_k,
    "min_k_plus_plus": _min_k_plus_plus,
    "zlib": _zlib,
    "reference": _reference,
}
"""Scores by the name of the attack."""

ALLOWED: Mapping[str, float] = {"tpr_1": 0.01, "tpr_5": 0.05}
"""Largest share of holdout texts that are called members, by the end of a row's name."""


def _metrics(attack: str) -> tuple[Metric, ...]:
    scores = ATTACKS[attack]
    needs = frozenset[Need]({"retrained"}) if attack == "reference" else frozenset[Need]()

    def auc(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
        from unforgotten.experiments.metrics.membership import attack_auc

        return attack_auc(f"mia_{attack}_auc", scores(model, settings), len(probes.passages), seed=settings.seed)

    def found(end: str) -> Callable[[Examined, Probes, Measuring], Measurement]:
        def rate(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
            from unforgotten.experiments.metrics.membership import attack_rate

            own, name = scores(model, settings), f"mia_{attack}_{end}"
            return attack_rate(name, own, len(probes.passages), ALLOWED[end], seed=settings.seed)

        return rate

    shares = {
        end: f"forget passages found at {100 * ALLOWED[end]:.0f} % of holdout texts, by {attack}" for end in ALLOWED
    }
    return (
        Metric(f"mia_{attack}_auc", f"AUC of the membership attack by {attack}; on demand", auc, needs, on_demand=True),
        *(
            Metric(f"mia_{attack}_{end}", f"share of {said}; on demand", found(end), needs, on_demand=True)
            for end, said in shares.items()
        ),
    )


METRICS = tuple(metric for attack in ATTACKS for metric in _metrics(attack))

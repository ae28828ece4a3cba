"""min_k_plus_plus: Min-K%++ of the forget passages, the mean standing of the tokens that stand lowest.

The standing of a token is (log p(y) - mu) / sigma, where mu and sigma are the mean and the standard deviation of log p(z) for
z drawn from the model's own distribution at that place; the score of a text is the mean over the share `evaluation.min_k` of
its tokens with the lowest. A likely text has a high one. Zhang et al. 2024, Min-K%++ (arXiv 2404.02936).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def scores_of(model: Examined, documents: Sequence[Sequence[int]], settings: Measuring) -> list[float]:
    """Return Min-K%++ of each document."""
    import torch

    from unforgotten.experiments.metrics.membership import min_k
    from unforgotten.experiments.models.token_details import STANDING

    found = [torch.from_numpy(columns[:, STANDING]) for columns in model.token_details(documents)]
    return min_k(found, settings.evaluation.min_k)


def _of_passages(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return scores_of(model, probes.passages, settings)


METRICS = (
    by_items(
        "min_k_plus_plus",
        "Min-K%++ of the forget passages, in standard deviations of log p; on demand",
        _of_passages,
        on_demand=True,
    ),
)

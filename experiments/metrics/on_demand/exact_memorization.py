"""exact_memorization: the share of a forget truth's tokens that are the likeliest where they stand, what precedes them given.

(1 / n) sum over i of [argmax p(. | prompt, y_1 .. y_(i-1)) = y_i], from Tirumala et al. 2022 (arXiv 2205.10770). Prompts and
truths are those of M1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def _items(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    from unforgotten.experiments.models.token_details import GREEDY

    return [float(columns[:, GREEDY].mean()) for columns in model.answer_details(probes.verbatim)]


METRICS = (
    by_items(
        "exact_memorization",
        "share of the tokens of forget passages that are the likeliest in their place, 0-1; on demand",
        _items,
        on_demand=True,
    ),
)

"""extraction_strength: how little of a forget truth must be given before the model says all the rest of it.

1 - k / n, where n is the number of tokens of the truth and k the fewest that must stand before the prediction, so that the
likeliest token at every later place is the truth's own: 1 where nothing must be given, 0 where the last token is wrong. The
definition is from Carlini et al. 2021 (arXiv 2012.07805) as OpenUnlearning (arXiv 2506.12618) uses it, whose code gives 1 / n
in place of 0. Prompts and truths are those of M1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unforgotten.experiments.metrics.metric import by_items

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def strength(greedy: NDArray[Any]) -> float:
    """Return the share of tokens in the unbroken run of hits at the end.

    Args:
        greedy: for each token of a truth, given those before it, 1 where it is the likeliest, else 0; (n,), n >= 1.
    """
    misses = [i for i, hit in enumerate(greedy) if not hit]
    needed = misses[-1] + 1 if misses else 0
    return 1.0 - needed / len(greedy)


def _items(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    from unforgotten.experiments.models.token_details import GREEDY

    return [strength(columns[:, GREEDY]) for columns in model.answer_details(probes.verbatim)]


METRICS = (
    by_items(
        "extraction_strength",
        "extraction strength of the forget passages, 0-1; 1 is all without help; on demand",
        _items,
        on_demand=True,
    ),
)

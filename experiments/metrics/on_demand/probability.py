"""forget_probability and retain_probability: probability of the right answer, normalized for its length.

p(a | q)^(1 / n), n the number of the answer's tokens: the geometric mean of their probabilities. Maini et al. 2024, TOFU
(arXiv 2401.06121), section 2.2. Prompts are those of M2 and M4; an end token is not among the answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.metrics.metric import by_items

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Answered, Probes


def normalized(log_p: NDArray[Any]) -> float:
    """Return the geometric mean of probabilities, given as log p, nats, (n,), n >= 1."""
    from math import exp

    return exp(log_p.astype(float).mean())


def probabilities(model: Examined, answered: Sequence[Answered]) -> list[float]:
    """Return the normalized probability of each answer."""
    from unforgotten.experiments.models.token_details import LABEL

    return [normalized(columns[:, LABEL]) for columns in model.answer_details(answered)]


def _of_forget(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return probabilities(model, [options.right for options in probes.forget_options])


def _of_retain(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return probabilities(model, [options.right for options in probes.retain_options])


MEANING = "probability of the right answer to {split} questions, geometric mean a token, 0-1; on demand"
METRICS = (
    by_items("forget_probability", MEANING.format(split="forget"), _of_forget, on_demand=True),
    by_items("retain_probability", MEANING.format(split="retain"), _of_retain, on_demand=True),
)

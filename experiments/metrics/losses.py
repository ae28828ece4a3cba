"""forget_loss and retain_loss: mean negative log-probability per token of each document, nats.

The tokens are those of the text after its start tokens; an end token is none of them, as in MUSE. This holds from the
revision after 0.1.0+src.e8a72f452c72 on: earlier rows count the end token of a document that was not cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items
from unforgotten.records.metrics import METRICS as MEANINGS

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def loss_items(scores: Sequence[Tensor]) -> list[float]:
    """Return the loss of each document.

    Args:
        scores: `token_scores` of the documents.
    """
    return [-float(text.double().mean()) for text in scores]


def _of_passages(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return loss_items(model.token_scores("passages"))


def _of_retain(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return loss_items(model.token_scores("retained"))


METRICS = (
    by_items("forget_loss", MEANINGS["forget_loss"], _of_passages),
    by_items("retain_loss", MEANINGS["retain_loss"], _of_retain),
)

"""forget_loss and retain_loss: mean negative log-probability per token of each document."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unforgotten.experiments.metrics.items import of_items
from unforgotten.records.store import Measurement


def losses(passages: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Measurement]:
    """forget_loss of the passages and retain_loss of the retain documents, one item a document.

    Args:
        passages: `token_scores` of `Probes.passages`.
        retain: those of `Probes.retain`.
    """
    return [
        of_items(name, [-float(text.double().mean()) for text in texts])
        for name, texts in (("forget_loss", passages), ("retain_loss", retain))
    ]

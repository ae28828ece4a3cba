"""What the losses need of the target, computed once for all arms of one arithmetic."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic, autocast
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.log_probs import distributions, sequence_log_probs
from unforgotten.experiments.models.scoring import batches_of, next_logits, score_batch


@dataclass(frozen=True)
class Reference:
    """What the losses need of the target, computed once.

    Attributes:
        sequences: log p of each forget document, (n,).
        distributions: normalized log-probabilities at every position of each retain document, float32
            (length - 1, vocabulary).
    """

    sequences: Tensor
    distributions: tuple[Tensor, ...]


@torch.no_grad()
def make_reference(
    target: PreTrainedModel, documents: tuple[Documents, Documents], batch: int, arithmetic: Arithmetic
) -> Reference:
    """Run the target once over both sets, in the arithmetic of the arm, to which it is converted in place.

    Before the first step, then, model and reference agree: of one batch they give equal log-probabilities, so that the
    divergence is 0 and no preference comes from rounding the weights.
    """
    arithmetic.cast(target)
    sequences: list[Tensor] = []
    rows: list[Tensor] = []
    with arithmetic.computing(), autocast(arithmetic.autocast):
        for b in batches_of(target, documents[0], batch):
            sequences.append(sequence_log_probs(score_batch(target, b)))
        for b in batches_of(target, documents[1], batch):
            lengths = (b.attention_mask.sum(-1) - 1).tolist()
            normalized = distributions(next_logits(target, b))
            rows += [d[:n].clone() for d, n in zip(normalized, lengths, strict=True)]
    return Reference(torch.cat(sequences), tuple(rows))


class References:
    """References of the target by arithmetic, made on first need, and kept as long as `keep` says.

    Args:
        forget: token ids of the documents to forget.
        retain: token ids of the documents to keep.
        batch: documents of one pass.
    """

    def __init__(self, forget: Documents, retain: Documents, batch: int) -> None:
        self._documents, self._batch = (forget, retain), batch
        self._made: dict[Arithmetic, Reference] = {}

    def of(self, target: PreTrainedModel, arithmetic: Arithmetic) -> Reference:
        """Return the reference of this arithmetic, from a model with the target's weights."""
        if arithmetic not in self._made:
            self._made[arithmetic] = make_reference(target, self._documents, self._batch, arithmetic)
        return self._made[arithmetic]

    def keep(self, ahead: Collection[Arithmetic]) -> None:
        """Drop the references that no arm ahead needs."""
        self._made = {a: r for a, r in self._made.items() if a in ahead}

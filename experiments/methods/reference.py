"""What the losses need of the target, computed once for all arms of one arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic, autocast
from unforgotten.experiments.models.batches import Batch, Documents
from unforgotten.experiments.models.log_probs import sequence_log_probs, token_log_probs
from unforgotten.experiments.models.scoring import batches_of, next_logits


@dataclass(frozen=True)
class Seen:
    """A set of documents as the target sees it.

    Attributes:
        sequences: log p of each document, (n,).
        hidden: what the output layer is given at each position of each document, (length, width) on the CPU; the logits
            themselves where they are not the output of that layer.
        head: output layer of the target.
    """

    sequences: Tensor
    hidden: tuple[Tensor, ...]
    head: nn.Module

    @torch.no_grad()
    def logits(self, documents: Sequence[int]) -> Tensor:
        """Return the logits at each position of the documents, (batch, length, vocabulary); of no meaning on padding."""
        rows = [self.hidden[i].to(self.sequences.device) for i in documents]
        logits: Tensor = self.head(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        return logits


@dataclass(frozen=True)
class Reference:
    """What the losses need of the target, computed once.

    Attributes:
        forget: documents to forget.
        retain: documents to keep.
    """

    forget: Seen
    retain: Seen


def make_reference(
    target: PreTrainedModel, documents: tuple[Documents, Documents], batch: int, arithmetic: Arithmetic
) -> Reference:
    """Run the target once over both sets, in the arithmetic of the arm, to which it is converted in place.

    Before the first step, then, model and reference agree: of one batch they give equal log-probabilities, so that the
    divergence is 0 and no preference comes from rounding the weights.
    """
    arithmetic.cast(target)
    with arithmetic.computing(), autocast(arithmetic.autocast, target.device):
        forget, retain = (_seen(target, d, batch) for d in documents)
    return Reference(forget, retain)


@torch.no_grad()
def _seen(target: PreTrainedModel, documents: Documents, batch: int) -> Seen:
    """Keep what the output layer is given, which is smaller than the logits, and a copy of that layer."""
    sequences: list[Tensor] = []
    hidden: list[Tensor] = []
    layer = _logit_layer(target, next(batches_of(target, documents, batch)))
    for b in batches_of(target, documents, batch):
        given, logits = _pass(target, b)
        sequences.append(sequence_log_probs(token_log_probs(logits, b.input_ids, b.scored)))
        rows = logits if layer is None else given
        lengths = b.attention_mask.sum(-1).tolist()
        hidden += [row[:n].clone().cpu() for row, n in zip(rows, lengths, strict=True)]
    kept = nn.Identity() if layer is None else copy.deepcopy(layer).requires_grad_(False)
    return Seen(torch.cat(sequences), tuple(hidden), kept)


def _logit_layer(target: PreTrainedModel, batch: Batch) -> nn.Module | None:
    """Return the output layer, or None where the logits are not its output alone: capped, say, or scaled."""
    layer = target.get_output_embeddings()
    given, logits = _pass(target, batch)
    return layer if layer is not None and torch.equal(layer(given), logits) else None


def _pass(target: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the output layer was given, and the logits; the logits twice where there is no such layer."""
    layer = target.get_output_embeddings()
    if layer is None:
        logits = next_logits(target, batch)
        return logits, logits
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        logits = next_logits(target, batch)
    finally:
        hook.remove()
    return given[0], logits


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

"""One batch as a loss sees it: under the model of the moment, and under the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.methods.reference import Reference
from unforgotten.experiments.models.batches import Batch
from unforgotten.experiments.models.log_probs import TokenLogProbs, distributions
from unforgotten.experiments.models.scoring import next_logits, score_batch


@dataclass(frozen=True)
class View:
    """A batch of forget or of retain documents.

    Attributes:
        model: model of the moment; every look at it is a forward pass.
        batch: token ids and mask.
        reference: log-probabilities of all documents under the target.
    """

    model: PreTrainedModel
    batch: Batch
    reference: Reference

    @property
    def scored(self) -> TokenLogProbs:
        """Log-probabilities of the tokens, under the model."""
        return score_batch(self.model, self.batch)

    @property
    def distributions(self) -> Tensor:
        """Log-probabilities of all tokens at every position, under the model."""
        return distributions(next_logits(self.model, self.batch))

    @property
    def mask(self) -> Tensor:
        """True on real tokens, (batch, length - 1)."""
        return self.batch.attention_mask[:, 1:].bool()

    @property
    def target_sequences(self) -> Tensor:
        """Log-probability of each forget document, under the target, (batch,)."""
        return self.reference.sequences[list(self.batch.documents)]

    @property
    def target_distributions(self) -> Tensor:
        """`distributions` of a retain batch under the target."""
        rows = [self.reference.distributions[i] for i in self.batch.documents]
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

"""One batch as a loss sees it: under the model of the moment, and under the target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.methods.reference import Seen
from unforgotten.experiments.models.batches import Batch
from unforgotten.experiments.models.log_probs import TokenLogProbs, distributions
from unforgotten.experiments.models.scoring import next_logits, score_batch


@dataclass(frozen=True)
class View:
    """A batch of forget or of retain documents.

    Attributes:
        model: model of the moment; every look at it is a forward pass.
        batch: token ids and mask.
        seen: all documents of that set, under the target.
    """

    model: PreTrainedModel
    batch: Batch
    seen: Seen

    @property
    def scored(self) -> TokenLogProbs:
        """Log-probabilities of the tokens, under the model."""
        return score_batch(self.model, self.batch)

    @property
    def logits(self) -> Tensor:
        """Logits at every position under the model, not normalized, (batch, length, vocabulary)."""
        return next_logits(self.model, self.batch)

    @property
    def distributions(self) -> Tensor:
        """Log-probabilities of all tokens at every position but the last, under the model."""
        return distributions(self.logits)

    @property
    def real(self) -> Tensor:
        """True on real tokens, (batch, length); in a document of which some tokens count, where one of those follows."""
        return self.batch.places

    @property
    def mask(self) -> Tensor:
        """True where a distribution has a token that follows and counts, (batch, length - 1)."""
        return self.batch.scored[:, 1:].bool()

    @property
    def target_sequences(self) -> Tensor:
        """Log-probability of each document, under the target, (batch,)."""
        return self.seen.sequences[list(self.batch.documents)]

    @property
    def target_logits(self) -> Tensor:
        """`logits` under the target; of no meaning on padding."""
        return self.seen.logits(self.batch.documents)

    @property
    def target_distributions(self) -> Tensor:
        """`distributions` under the target; of no meaning on padding."""
        return distributions(self.target_logits)

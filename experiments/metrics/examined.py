"""A model at the moment of its measurement: what it says, and how likely texts are to it, computed once for all metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.models.generation import generate
from unforgotten.experiments.models.scoring import token_scores

Texts = Literal["passages", "retain", "holdout"]


@dataclass(frozen=True)
class Examined:
    """One model with its weights of the moment.

    Attributes:
        model: model that is measured.
        tokenizer: its tokenizer.
        probes: texts that are scored.
        settings: settings, of which batches are read.
        retrained_scores: `membership_scores` of the model that never saw the forget texts; None without it.
    """

    model: PreTrainedModel
    tokenizer: Any
    probes: Probes
    settings: Measuring
    retrained_scores: list[float] | None = None
    _scores: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)

    def token_scores(self, texts: Texts) -> list[Tensor]:
        """Return log p of each token but the first of each text of that name in the probes."""
        if texts not in self._scores:
            documents: list[list[int]] = getattr(self.probes, texts)
            self._scores[texts] = token_scores(self.model, documents, self.settings.evaluation.batch)
        return self._scores[texts]

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[str]:
        """Return the greedy continuation of each prompt, as text."""
        outputs = generate(self.model, prompts, self.tokenizer, new_tokens, self.settings.evaluation.batch)
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]

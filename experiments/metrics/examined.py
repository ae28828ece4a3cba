"""A model at the moment of its measurement: what it says, and how likely texts are to it, computed once for all metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.metrics.probes import Answered, Probes
from unforgotten.experiments.models.generation import generate
from unforgotten.experiments.models.kept import Kept
from unforgotten.experiments.models.sampling import Drawing
from unforgotten.experiments.models.scoring import LOGIT_BYTES, SCORED_TOGETHER, token_scores
from unforgotten.experiments.models.token_details import token_details

Texts = Literal["passages", "retained", "holdout"]
Make = Callable[[Sequence[Sequence[int]]], list[NDArray[Any]]]
PART_TOKENS = 2**15
"""Tokens, at most, of documents whose answers are kept in one file."""


@dataclass(frozen=True)
class Examined:
    """One model with its weights of the moment.

    Attributes:
        model: model that is measured.
        tokenizer: its tokenizer.
        probes: texts that are scored.
        settings: settings, of which batches are read.
        retrained_scores: `membership_scores` of the model that never saw the forget texts; None without it.
        retrained_losses: its losses of the same texts; None without it.
        kept: where answers are kept on disk, and a digest of the weights; None where none are.
    """

    model: PreTrainedModel
    tokenizer: Any
    probes: Probes
    settings: Measuring
    retrained_scores: list[float] | None = None
    kept: tuple[Kept, str] | None = None
    retrained_losses: list[float] | None = None
    _scores: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    _details: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict, repr=False)
    _sampled: dict[str, list[list[int]]] = field(default_factory=dict, repr=False)

    def token_scores(self, texts: Texts) -> list[Tensor]:
        """Return log p of each token but the first of each text of that name in the probes."""
        if texts not in self._scores:
            documents: list[list[int]] = getattr(self.probes, texts)
            batch = self.settings.evaluation.batch
            rows = self._rows(
                ["scores", batch, LOGIT_BYTES, SCORED_TOGETHER],
                documents,
                lambda part: [row.numpy() for row in token_scores(self.model, part, batch)],
            )
            self._scores[texts] = [torch.from_numpy(row) for row in rows]
        return self._scores[texts]

    def token_details(self, documents: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Return the columns of `models.token_details` for each token but the first of each document."""
        rows = [list(document) for document in documents]
        key = repr(rows)
        if key not in self._details:
            batch = self.settings.evaluation.batch
            found = self._rows(
                ["details", batch, LOGIT_BYTES, SCORED_TOGETHER],
                rows,
                lambda part: [columns.ravel() for columns in token_details(self.model, part, batch)],
            )
            self._details[key] = [columns.reshape(-1, 3) for columns in found]
        return self._details[key]

    def answer_details(self, answered: Sequence[Answered]) -> list[NDArray[np.float32]]:
        """Return the columns of the tokens of each answer, given what stands before it.

        Raises:
            ValueError: an answer has no token.
        """
        for i, item in enumerate(answered):
            if item.answer < 1:
                raise ValueError(f"answers must have a token, got none in answer {i}")
        found = self.token_details([item.tokens for item in answered])
        return [columns[-item.answer :] for columns, item in zip(found, answered, strict=True)]

    def continuations(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[str]:
        """Return the greedy continuation of each prompt, as text."""
        return [self.decode(tokens) for tokens in self.continuation_tokens(prompts, new_tokens)]

    def continuation_tokens(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """Return the greedy continuation of each prompt, as token ids, without an end token."""
        batch, tokenizer = self.settings.evaluation.batch, self.tokenizer
        outputs = self._rows(
            ["greedy alone", new_tokens, batch, tokenizer.eos_token_id],
            [list(p) for p in prompts],
            lambda part: [
                np.array(tokens, np.int64) for tokens in generate(self.model, part, tokenizer, new_tokens, batch)
            ],
        )
        return [tokens.tolist() for tokens in outputs]

    def sampled(self, prompts: Sequence[Sequence[int]], new_tokens: int, drawing: Drawing) -> list[str]:
        """Return the answer to each prompt that is drawn so, as text; it depends on the prompt and the drawing alone."""
        return [self.decode(tokens) for tokens in self.sampled_tokens(prompts, new_tokens, drawing)]

    def sampled_tokens(self, prompts: Sequence[Sequence[int]], new_tokens: int, drawing: Drawing) -> list[list[int]]:
        """Return the answers as token ids, without an end token."""
        key = repr((list(map(list, prompts)), new_tokens, drawing))
        if key not in self._sampled:
            batch, tokenizer = self.settings.evaluation.batch, self.tokenizer

            def make(part: Sequence[Sequence[int]]) -> list[NDArray[Any]]:
                found = generate(self.model, part, tokenizer, new_tokens, batch, drawing=drawing)
                return [np.array(tokens, np.int64) for tokens in found]

            decides = ["sampled", new_tokens, batch, tokenizer.eos_token_id, *drawing]
            rows = self._rows(decides, [list(p) for p in prompts], make)
            self._sampled[key] = [tokens.tolist() for tokens in rows]
        return self._sampled[key]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _rows(self, decides: list[Any], documents: Sequence[Sequence[int]], make: Make) -> list[NDArray[Any]]:
        """Return a row for each document; where they are kept, part by part, so that little is lost to a cut."""
        if self.kept is None:
            return make(documents)
        kept, weights = self.kept
        return [
            row
            for part in parts_of(documents, PART_TOKENS)
            for row in kept.rows([weights, *decides, part], partial(make, part))
        ]


def parts_of(documents: Sequence[Sequence[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Yield the documents in order, at most so many tokens together, or one alone."""
    part: list[list[int]] = []
    for document in documents:
        if part and sum(map(len, part)) + len(document) > tokens:
            yield part
            part = []
        part.append(list(document))
    if part:
        yield part

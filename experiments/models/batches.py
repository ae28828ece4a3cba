"""Documents as token batches: padded and masked, in seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unforgotten.experiments.models.special_tokens import end_tokens, start_tokens, started

Documents = Sequence[Sequence[int]]
"""Token ids of each document."""


@dataclass(frozen=True)
class Counted(Sequence[int]):
    """A document of which some tokens alone count in losses; the others are read.

    Attributes:
        tokens: token ids.
        counted: whether each counts.
    """

    tokens: tuple[int, ...]
    counted: tuple[bool, ...]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def __getitem__(self, at: Any) -> Any:
        """Return a token, or a slice of them."""
        return self.tokens[at]


class Batch(NamedTuple):
    """Padded token ids and their mask, (batch, length), and which documents they are.

    `counted` is 1 on tokens that count in losses, (batch, length); None where all real ones do.
    """

    input_ids: Tensor
    attention_mask: Tensor
    documents: tuple[int, ...]
    counted: Tensor | None = None

    def on(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        counted = None if self.counted is None else self.counted.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.documents, counted)

    def rows(self, start: int, stop: int) -> Batch:
        """Return some documents, cut to the longest of them."""
        length = int(self.attention_mask[start:stop].sum(-1).max())
        ids, mask = self.input_ids[start:stop, :length], self.attention_mask[start:stop, :length]
        counted = None if self.counted is None else self.counted[start:stop, :length]
        return Batch(ids, mask, self.documents[start:stop], counted)

    @property
    def scored(self) -> Tensor:
        """1 on tokens that count, (batch, length); the first of a document has nothing before it and is never scored."""
        return self.attention_mask if self.counted is None else self.counted

    @property
    def places(self) -> Tensor:
        """True on positions that count, (batch, length): those before a token that counts, and the last if it counts itself."""
        if self.counted is None:
            return self.attention_mask.bool()
        follower = functional.pad(self.counted[:, 1:], (0, 1))
        last = self.attention_mask - functional.pad(self.attention_mask[:, 1:], (0, 1))
        return torch.where(last.bool(), self.counted, follower).bool()


def encode_documents(texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    """Return token ids of each document to train on, between start and end tokens, cut to `longest`; cut ones keep no end."""
    end = end_tokens(tokenizer)
    return [(started(text, tokenizer) + end)[:longest] for text in texts]


def encode_measured(texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    """Return token ids of each text that is measured, after start tokens, cut to `longest`: no end token, as in MUSE."""
    return [started(text, tokenizer)[:longest] for text in texts]


def encode_chunks(texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    """Return the token ids of running texts in chunks of `longest`, each after start tokens and without an end, as in MUSE.

    The last chunk of a text is as long as what is left; MUSE fills it with the first chunk of the text.

    Raises:
        ValueError: a chunk has no room for a token after the start tokens.
    """
    start = start_tokens(tokenizer)
    room = longest - len(start)
    if room < 1:
        raise ValueError(f"longest must be above {len(start)} start tokens, got longest={longest}")
    bodies = (started(text, tokenizer)[len(start) :] for text in texts)
    return [start + body[i : i + room] for body in bodies for i in range(0, len(body), room)]


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False, documents: Sequence[int] = ()) -> Batch:
    """Return one batch; padding goes to the right, or to the left for generation.

    Args:
        rows: token ids, or documents of which some tokens count.
        pad_id: token that fills the shorter rows. It is masked, so a negative one, which no embedding has, counts as 0.
        left: side of the padding.
        documents: index of each row among the documents.
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), max(pad_id, 0), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(list(row), dtype=torch.long)
        mask[i, place] = 1
    if not any(isinstance(row, Counted) for row in rows):
        return Batch(ids, mask, tuple(documents))
    counted = mask.clone()
    for i, row in enumerate(rows):
        if isinstance(row, Counted):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            counted[i, place] = torch.tensor(row.counted, dtype=torch.long)
    return Batch(ids, mask, tuple(documents), counted)


def shuffled_batches(
    documents: Documents, size: int, pad_id: int, seed: int, *, beside: int | None = None
) -> Iterator[Batch]:
    """Yield batches without end; every document comes once before any comes again.

    Args:
        documents: token ids.
        size: documents of one batch.
        pad_id: token that fills shorter rows.
        seed: seed of the order.
        beside: number of documents that these are paired with: with a seed, document i modulo their own number comes where
            document i of those comes with it. None where they are in an order of their own.
    """
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    count = len(documents) if beside is None else beside
    size = min(size, count)
    while True:
        while len(queue) < size:
            queue += rng.permutation(count).tolist()
        chosen, queue = [i % len(documents) for i in queue[:size]], queue[size:]
        yield pad([documents[i] for i in chosen], pad_id, documents=chosen)


def in_order(documents: Documents, size: int, pad_id: int) -> Iterator[Batch]:
    """Yield every document once, in order."""
    for start in range(0, len(documents), size):
        index = range(start, min(start + size, len(documents)))
        yield pad([documents[i] for i in index], pad_id, documents=index)

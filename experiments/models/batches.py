"""Documents as token batches: padded and masked, in seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unforgotten.experiments.models.special_tokens import end_tokens, started

Documents = Sequence[Sequence[int]]
"""Token ids of each document."""


class Batch(NamedTuple):
    """Padded token ids and their mask, (batch, length), and which documents they are."""

    input_ids: Tensor
    attention_mask: Tensor
    documents: tuple[int, ...]


def encode_documents(texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    """Return token ids of each document between start and end tokens, cut to `longest`; the cut ones keep no end."""
    end = end_tokens(tokenizer)
    return [(started(text, tokenizer) + end)[:longest] for text in texts]


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False, documents: Sequence[int] = ()) -> Batch:
    """Return one batch; padding goes to the right, or to the left for generation."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return Batch(ids, mask, tuple(documents))


def shuffled_batches(documents: Documents, size: int, pad_id: int, seed: int) -> Iterator[Batch]:
    """Yield batches without end; every document comes once before any comes again."""
    rng = np.random.default_rng(seed)
    queue: list[int] = []
    size = min(size, len(documents))
    while True:
        while len(queue) < size:
            queue += rng.permutation(len(documents)).tolist()
        chosen, queue = queue[:size], queue[size:]
        yield pad([documents[i] for i in chosen], pad_id, documents=chosen)


def in_order(documents: Documents, size: int, pad_id: int) -> Iterator[Batch]:
    """Yield every document once, in order."""
    for start in range(0, len(documents), size):
        index = range(start, min(start + size, len(documents)))
        yield pad([documents[i] for i in index], pad_id, documents=index)

"""Documents as token batches: padded and masked, in seeded order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unforgotten.experiments.models.special_tokens import end_tokens, start_tokens, started

Documents = Sequence[Sequence[int]]
"""Token ids of each document."""


class Batch(NamedTuple):
    """Padded token ids and their mask, (batch, length), and which documents they are."""

    input_ids: Tensor
    attention_mask: Tensor
    documents: tuple[int, ...]

    def on(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.documents)


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
        rows: token ids.
        pad_id: token that fills the shorter rows. It is masked, so a negative one, which no embedding has, counts as 0.
        left: side of the padding.
        documents: index of each row among the documents.
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), max(pad_id, 0), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return Batch(ids, mask, tuple(documents))


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

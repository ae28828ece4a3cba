"""A batch in parts: the loss of a batch is the sum of those of its parts, each times its share of what the loss is a mean over.

    [(part, share) for part, share in parts_of(batch, "followers", size=1)]

holds the documents one by one, and `sum(share * cross_entropy(part))` is the cross entropy of the batch, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from unforgotten.experiments.models.batches import Batch

Mean = Literal["documents", "tokens", "followers"]
"""What a loss is a mean over: documents, real tokens, or real tokens but the first of each document; of the tokens those that count."""

COUNTS: Mapping[Mean, Callable[[Batch], int]] = {
    "documents": lambda batch: len(batch.input_ids),
    "tokens": lambda batch: int(batch.places.sum()),
    "followers": lambda batch: int(batch.scored[:, 1:].sum()),
}
Part = tuple[Batch, float]
"""Some documents of a batch, and their share of it."""


def parts_of(batch: Batch, mean: Mean, size: int | None, *, process: int = 0, processes: int = 1) -> list[Part]:
    """Return the parts of a batch that one of several processes computes.

    Every process has equally many: where documents do not suffice, one comes again with a share of 0, for all must pass the
    model equally often where its weights are shared out. Documents that the mean counts as nothing are left out.

    Args:
        batch: batch that is padded on the right.
        mean: what the loss is a mean over.
        size: documents of a part; None for as many as a process has.
        process: number of the process, from 0.
        processes: number of processes.
    """
    count = len(batch.input_ids)
    if processes == 1 and (size is None or size >= count):
        return [(batch, 1.0)]
    own = -(-count // processes)
    size = min(size or own, own)
    counted = COUNTS[mean]
    shared = [
        [batch.rows(i, min(i + size, start + own, count)) for i in range(start, min(start + own, count), size)]
        for start in range(0, own * processes, own)
    ]
    known = [part for parts in shared for part in parts if counted(part)] or [batch]
    most = max(sum(counted(part) > 0 for part in parts) for parts in shared)
    mine = [(part, counted(part) / counted(batch)) for part in shared[process] if counted(part)]
    return mine + [(known[0], 0.0)] * (max(most, 1) - len(mine))

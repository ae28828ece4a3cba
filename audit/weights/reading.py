"""Whether a worker maps its files or reads them: whichever is faster here.

Reading copies every byte, mapping sets up a table entry for every page. On a machine that copied 10 GB/s mapping took
half as long, on one that copied 30 GB/s twice as long: nobody knows but by trying.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from unforgotten.audit.sources.files import mapping_files

TRIED = (True, True, False)  # whether the first batches are mapped; the first of all warms up
LEAST = 4  # pieces of a batch that says anything; smaller ones are read


class Fetching:
    """Times the first batches of a worker, and chooses for all that follow."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    @property
    def maps(self) -> bool:
        """Whether the next batch is mapped."""
        done = len(self._seconds)
        if done < len(TRIED):
            return TRIED[done]
        _, mapped, read = self._seconds
        return mapped < read

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Surround the reading of a batch of some pieces: choose whether it is mapped, and take its time."""
        if size < LEAST:
            yield
            return
        start = time.perf_counter()
        with mapping_files(self.maps):
            yield
        if len(self._seconds) < len(TRIED):
            self._seconds.append((time.perf_counter() - start) / size)

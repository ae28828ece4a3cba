"""A file elsewhere that is fetched chunk by chunk as it is read, into a sparse file with a journal beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.hub_client import again, is_offline, stream_range

CHUNK_BYTES = 1 << 22
MAX_REQUEST_CHUNKS = 16
CAME = b"\1"
_LOCK = threading.Lock()  # one fetch at a time; two processes write the same bytes to the same places


@dataclass(frozen=True)
class RemoteFile:
    """A file of one commit of the Hub, which never changes.

    Attributes:
        path: the name in messages.
        size: number of bytes.
        url: path after the endpoint.
        place: place of the sparse file; the journal is `place` with `.chunks` added, a byte for each chunk.
    """

    path: Path
    size: int
    url: str
    place: Path

    @property
    def journal(self) -> Path:
        """A byte a chunk: CAME once the chunk is in the sparse file."""
        return self.place.with_name(self.place.name + ".chunks")

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """See `WeightFile.read`. Missing chunks are fetched.

        Raises:
            CheckpointError: offline, one is missing; or the Hub does not send it.
            OSError: the disk is full.
        """
        buffer = np.empty(nbytes, np.uint8)
        if nbytes == 0:
            return buffer
        with _LOCK, _named(self.place):
            self._fetch(offset // CHUNK_BYTES, -(-(offset + nbytes) // CHUNK_BYTES))
        with self.place.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < nbytes:
                count = file.readinto(buffer[done:].data)
                if not count:
                    rule = "must stay as it is while it is read"
                    raise CheckpointError(self.place, rule, f"{offset + done} bytes")
                done += count
        return buffer

    def drop(self) -> None:
        """Forget what was fetched."""
        self.journal.unlink(missing_ok=True)
        self.place.unlink(missing_ok=True)

    def _fetch(self, first: int, last: int) -> None:
        """Fetch the missing chunks of first … last - 1, neighbours in one request."""
        came = self._came()
        missing = [k for k in range(first, last) if came[k : k + 1] != CAME]
        if not missing:
            return
        if is_offline():
            rule = "must be in the cache while offline"
            got = f"{len(missing)} of {last - first} chunks missing"
            raise CheckpointError(self.path, rule, got)
        self.place.parent.mkdir(parents=True, exist_ok=True)
        while missing:
            run = 1
            while run < min(len(missing), MAX_REQUEST_CHUNKS) and (missing[run] == missing[0] + run):
                run += 1
            again(lambda: self._fetch_run(missing[0], missing[0] + run), str(self.path))  # noqa: B023
            missing = missing[run:]

    def _came(self) -> bytes:
        """Return the journal; empty if the sparse file is gone or another's."""
        if not (self.place.is_file() and self.journal.is_file()):
            return b""
        return self.journal.read_bytes() if self.place.stat().st_size == self.size else b""

    def _fetch_run(self, first: int, last: int) -> None:
        came = self._came()
        while first < last and came[first : first + 1] == CAME:  # of an attempt that broke
            first += 1
        if first == last:
            return
        start, stop = first * CHUNK_BYTES, min(last * CHUNK_BYTES, self.size)
        if not came:
            self.drop()
        with _opened(self.place) as data, _opened(self.journal) as journal:
            os.truncate(data, self.size)
            chunk, at = bytearray(), start
            for part in stream_range(self.url, start, stop, self.size, str(self.path)):
                chunk += part
                while len(chunk) >= CHUNK_BYTES or (chunk and at + len(chunk) == stop):
                    whole = chunk[:CHUNK_BYTES]
                    _write(data, whole, at)
                    _write(journal, CAME, at // CHUNK_BYTES)
                    at += len(whole)
                    del chunk[: len(whole)]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes | bytearray, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise

"""The bytes of one weight file, which may be hostile, may lie elsewhere than it says, and may change while it is read.

In goes a path, out come bytes of ranges that lie in the file, or an error of one line:

    file = open_file(Path("model/model.safetensors"), root=Path("model"))
    file.read(0, 8)
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.errors import CheckpointError

HASH_BYTES = 1 << 22
POPULATE = 22  # MADV_POPULATE_READ of Linux 5.14: what cannot be read is an error, not a signal
_MAPS: ContextVar[bool] = ContextVar("maps", default=False)


@contextmanager
def mapping_files(on: bool = True) -> Iterator[None]:
    """Map within this context, or read, what `LocalFile.look` looks at; by default it is read.

    A file that is cut while it is mapped kills the process, so this is for workers, of whom nothing is lost with them
    but their work.
    """
    token = _MAPS.set(on)
    try:
        yield
    finally:
        _MAPS.reset(token)


def maps_files() -> bool:
    """Return whether `LocalFile.look` maps files, see `mapping_files`."""
    return _MAPS.get()


class WeightFile(Protocol):
    """Bytes that are read in ranges: a local file, or one of the Hub."""

    @property
    def path(self) -> Path:
        """The name in messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        ...

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return the bytes from `offset`, in memory of their own. The range must lie within `size`.

        Raises:
            CheckpointError: the file is not the one that was opened.
        """
        ...


class Identity(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Identity:
        """Return the identity in a result of stat."""
        return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class LocalFile:
    """A regular file, bound to the state it had when it was opened.

    Attributes:
        path: path as given.
        real: path without symlinks.
        identity: identity of the first look.
    """

    path: Path
    real: str
    identity: Identity

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self.identity.size

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """See `WeightFile.read`."""
        buffer = np.empty(nbytes, np.uint8)
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, buffer: NDArray[np.uint8]) -> None:
        """Fill `buffer` with the bytes from `offset` on, as `read`: memory that is used again costs no page faults."""
        with self._opened() as descriptor:
            _fill(descriptor, buffer, offset, self.path)
            self._check(descriptor)

    def look(self, offset: int, nbytes: int) -> NDArray[np.uint8] | None:
        """Return the bytes from `offset` as the system holds them, not to be written to; None where they must be read.

        Raises:
            CheckpointError: as `read`; what changes later, `check` finds.
        """
        if not maps_files() or not nbytes:
            return None
        with self._opened() as descriptor:
            return _mapped(descriptor, offset, nbytes)

    def check(self) -> None:
        """Look whether this is still the file that was opened.

        Raises:
            CheckpointError: it is not.
        """
        with self._opened():
            pass

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Yield a descriptor of the file that was opened first, and of no other."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.real, flags)
        try:
            self._check(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check(self, descriptor: int) -> None:
        now = Identity.of(os.fstat(descriptor))
        if now != self.identity:
            got = f"{now.size} bytes instead of {self.size}" if now.size != self.size else "another"
            raise CheckpointError(self.path, "must stay as it is while it is read", got)


def _mapped(descriptor: int, offset: int, nbytes: int) -> NDArray[np.uint8] | None:
    """Return a range of a file, mapped; None where the system cannot, or cannot say that it did."""
    begin = offset % mmap.ALLOCATIONGRANULARITY
    try:
        # private, as kernels are compiled for arrays that could be written to
        seen = mmap.mmap(descriptor, begin + nbytes, access=mmap.ACCESS_COPY, offset=offset - begin)
        seen.madvise(POPULATE)
    except (AttributeError, OSError, ValueError):
        return None
    return np.frombuffer(seen, np.uint8)[begin:]


def _fill(descriptor: int, buffer: NDArray[np.uint8], offset: int, path: Path) -> None:
    view, done = buffer.data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(path, f"must have {offset + len(view)} bytes", f"{offset + done} bytes")
        done += count


def open_file(path: Path, root: Path | None = None) -> LocalFile:
    """Bind to a regular file.

    Args:
        path: the file.
        root: the directory that it must lie in, once symlinks are followed. A snapshot of the Hub's cache may also
            link to the blobs of its own repository. None for a file that the user named.

    Raises:
        CheckpointError: it is missing, leads out of `root`, or is no regular file.
    """
    try:
        real = os.path.realpath(path, strict=True)
        status = os.stat(real)
    except (OSError, ValueError):
        raise CheckpointError(path, "must be a file that exists", "none") from None
    if root is not None and not any(Path(real).is_relative_to(home) for home in _homes(root)):
        raise CheckpointError(path, "must not be a link out of its directory", real)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(path, "must be a file that exists", "something else")
    return LocalFile(path, real, Identity.of(status))


def _homes(root: Path) -> list[Path]:
    real = Path(os.path.realpath(root))
    if real.parent.name == "snapshots":
        return [real, real.parent.parent / "blobs"]
    return [real]


def read_all(file: WeightFile, most: int) -> bytes:
    """Return a small file whole.

    Raises:
        CheckpointError: it has more than `most` bytes.
    """
    if file.size > most:
        raise CheckpointError(file.path, f"must have at most {most} bytes", file.size)
    return file.read(0, file.size).tobytes()


def sha256_of(files: Iterable[WeightFile], first: bytes = b"") -> str:
    """Return the SHA-256 over `first` and the bytes of the files in the order given, as `cat FILES | sha256sum`."""
    digest = hashlib.sha256(first)
    for file in files:
        for start in range(0, file.size, HASH_BYTES):
            digest.update(file.read(start, min(HASH_BYTES, file.size - start)).data)
    return digest.hexdigest()

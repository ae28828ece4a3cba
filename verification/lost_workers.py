"""A checkpoint whose reader is killed: what a lost worker looks like to those who wait for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.headers import TensorInfo


@dataclass(frozen=True)
class Deadly:
    """Another checkpoint, but the process that first reads `name` is killed, as often as there are lives.

    Attributes:
        inner: the checkpoint.
        name: of the tensor.
        graves: an empty directory that counts the killed.
        lives: how many are killed.
    """

    inner: Checkpoint
    name: str
    graves: Path
    lives: int

    @property
    def source(self) -> Path | str:
        """See `Checkpoint.source`."""
        return self.inner.source

    @property
    def revision(self) -> str | None:
        """See `Checkpoint.revision`."""
        return self.inner.revision

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Checkpoint.tensors`."""
        return self.inner.tensors

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        return self.inner.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        buried = len(list(self.graves.iterdir()))
        if name == self.name and buried < self.lives:
            (self.graves / str(buried)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.read_rows(name, start, stop)

    def sha256(self) -> str:
        """See `Checkpoint.sha256`."""
        return self.inner.sha256()

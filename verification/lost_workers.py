"""A checkpoint whose reader is killed: what a lost worker looks like to those who wait for it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.matching.view import View, plain_parts


@dataclass(frozen=True)
class Deadly(View):
    """Another checkpoint, but the process that first reads `doomed` is killed, as often as there are lives.

    Attributes:
        doomed: the tensor.
        graves: an empty directory that counts the killed.
        lives: number of workers that are killed.
        home: the process that waits, which is not killed: that it reads itself is an error of the test.
    """

    doomed: str = ""
    graves: Path = Path()
    lives: int = 0
    home: int = 0

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        self._die_of(name)
        return super().read_rows(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        self._die_of(name)
        return super().read_flat(name, start, stop, buffer)

    def _die_of(self, name: str) -> None:
        buried = len(list(self.graves.iterdir()))
        if name == self.doomed and buried < self.lives:
            assert os.getpid() != self.home, "workers are to be lost, got a read without one"
            (self.graves / str(buried)).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def deadly(inner: Checkpoint, doomed: str, graves: Path, lives: int) -> Deadly:
    """Wrap a checkpoint, under its own names, in one that is deadly to its readers."""
    return Deadly(inner, plain_parts(inner), (), doomed, graves, lives, os.getpid())

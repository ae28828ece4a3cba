"""Progress of a run on standard error; silent when that is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Step = Callable[[int, int, str], None]


class Progress:
    """One bar over the stages, one over the steps of the stage at work."""

    def __init__(self, total_stages: int, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._stages = self._bars.add_task("stages", total=total_stages)
        self._steps = self._bars.add_task("", total=1, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """One stage; the function it gives moves the lower bar."""
        self._bars.update(self._stages, description=name)

        def step(done: int, total: int, text: str) -> None:
            self._bars.update(
                self._steps, completed=done, total=total, description=f"  {text}", visible=True
            )

        yield step
        self._bars.update(self._steps, visible=False)
        self._bars.advance(self._stages)

"""Progress on a terminal: one bar over the stages, one over the steps of the stage at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Drawn

from unforgotten.audit.progress.stages import DONE_BEFORE, Step


class Bars:
    """A `Progress` of two bars."""

    def __init__(self, total: int, stream: TextIO, *, transient: bool) -> None:
        self._bars = Drawn(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
            transient=transient,
        )
        self._stages = self._bars.add_task("stages", total=total)
        self._steps = self._bars.add_task("", total=1, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, unit: str = "steps") -> Iterator[Step]:
        """Name the stage on the upper bar; its steps move the lower one."""
        self._bars.update(self._stages, description=escape(name))

        def step(done: int, total: int, text: str = "") -> None:
            words = f"  {escape(text or unit)}"
            self._bars.update(self._steps, completed=done, total=total, description=words, visible=True)

        yield step
        self._bars.update(self._steps, visible=False)
        self._bars.advance(self._stages)

    def skip(self, why: str = DONE_BEFORE) -> None:
        """Move the upper bar."""
        self._bars.advance(self._stages)

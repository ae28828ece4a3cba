"""Progress of an audit on standard error; silent where that is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import TimeRemainingColumn


class AuditProgress:
    """A bar over tensors, as `weights_leg` reports them; nothing where standard error is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (*Bar.get_default_columns()[:-1], TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("opening", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """The tensor that comes next, how many are done, and how many there are."""
        self._bar.update(self._task, description=escape(ascii(name)), completed=done, total=total)

    def stage(self, name: str) -> None:
        """What follows, of unknown length."""
        self._bar.update(self._task, description=escape(name), completed=0, total=None)

"""What long work says of itself while it goes on: bars on a terminal, plain lines elsewhere, or nothing.

Work is a number of stages, one after the other, and a stage may be a number of steps:

    with progress_on(sys.stderr, total=2) as progress:
        with progress.stage("train base") as step:
            for k in range(1000):
                ...
                step(k + 1, 1000, f"loss {loss:.2f}")
        with progress.stage("evaluate base"):
            ...
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO

DONE_BEFORE = "done before"
Begin = Callable[[str], None]
"""Told the name of each of a known number of things before it begins, and an empty name after the last."""


class Step(Protocol):
    """Told how far a stage is."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Take how many steps are done of how many, and what else there is to say: printable, and no line break."""
        ...


class Progress(Protocol):
    """Told which stage the work is in."""

    def stage(self, name: str, unit: str = "steps") -> AbstractContextManager[Step]:
        """Surround one stage; `unit` is what its steps are, in the plural."""
        ...

    def skip(self, why: str = DONE_BEFORE) -> None:
        """Count a stage that is not done now; `why` completes "it was"."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, name: str, unit: str = "steps") -> AbstractContextManager[Step]:
        """Surround a stage that nobody hears of."""
        return nullcontext(ignore)

    def skip(self, why: str = DONE_BEFORE) -> None:
        """Count nothing."""


def ignore(done: int, total: int, text: str = "") -> None:
    """Take a step that nobody hears of."""


SILENT = Silent()


def counted(step: Step, total: int) -> Begin:
    """Turn names of things that begin, one after the other, into steps: how many are done, and what comes next."""
    done = itertools.count()
    return lambda name: step(next(done), total, name)


@contextmanager
def progress_on(
    stream: TextIO | None, total: int, *, quiet: bool = False, transient: bool = False
) -> Iterator[Progress]:
    """Speak of work on a stream.

    Args:
        stream: standard error; None where a process has none.
        total: number of stages, those that are skipped among them.
        quiet: whether to say nothing.
        transient: whether bars are taken away at the end.
    """
    if quiet or stream is None:
        yield SILENT
    elif draws_bars(stream):
        from unforgotten.audit.progress.bars import Bars

        with Bars(total, stream, transient=transient) as bars:
            yield bars
    else:
        from unforgotten.audit.progress.lines import Voice, spoken

        with spoken(total, Voice(stream)) as lines:
            yield lines


def draws_bars(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal on which a line can be drawn over."""
    if not stream.isatty():
        return False
    from rich.console import Console

    return Console(file=stream).is_interactive

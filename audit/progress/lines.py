"""Progress in a log: one plain line a stage when it is done, and one every PERIOD seconds of a stage that is long.

    [ 1/41] train base: 310/700 steps, loss 4.214, 10 s
    [ 1/41] train base: 625/700 steps, loss 3.377, 20 s
    [ 1/41] train base: 700/700 steps, loss 3.124, done in 22 s
    [ 2/41] evaluate target none: done in 1.4 s

A thread speaks of long stages, so that a stage without steps, or with one that takes minutes, is heard of too.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

from unforgotten.audit.progress.stages import DONE_BEFORE, Step

PERIOD = 10.0
"""Seconds between two lines of one stage, at least."""

BEAT = 1.0
"""Seconds between two looks at the clock."""

Say = Callable[[str], None]


@dataclass
class _Stage:
    """The stage at work; `at` is what its last step said."""

    head: str
    unit: str
    began: float
    spoke: float
    at: tuple[int, int, str] | None = None

    def line(self, end: str) -> str:
        """Build the line that ends with these words."""
        words = [end]
        if self.at is not None:
            done, total, text = self.at
            words = [f"{done}/{total} {self.unit}", *([text] if text else []), end]
        return f"{self.head}: {', '.join(words)}"


class Lines:
    """A `Progress` that says lines. A stage that ends by an exception says nothing more: its message does.

    Args:
        total: number of stages.
        say: function that takes each line.
        clock: function that gives seconds since any moment; never goes back.
    """

    def __init__(self, total: int, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._say, self._clock = total, say, clock
        self._began = clock()
        self._number = self._skipped = 0
        self._why = DONE_BEFORE
        self._failed = False
        self._stage: _Stage | None = None
        self._lock = threading.Lock()  # lines come from the thread of `beating` too

    @contextmanager
    def stage(self, name: str, unit: str = "steps") -> Iterator[Step]:
        """Say the stage's line at its end."""
        self._say_skipped()
        self._number += 1
        now = self._clock()
        stage = _Stage(f"{self._bracket()} {name}", unit, began=now, spoke=now)

        def step(done: int, total: int, text: str = "") -> None:
            stage.at = (done, total, text)

        self._enter(stage)
        try:
            yield step
        except BaseException:
            self._failed = True
            self._enter(None)
            raise
        self._enter(None)
        self._say(stage.line(f"done in {duration(self._clock() - stage.began)}"))

    def skip(self, why: str = DONE_BEFORE) -> None:
        """Count the stage; all that follow each other for one reason are one line."""
        if why != self._why:
            self._say_skipped()
        self._why = why
        self._number += 1
        self._skipped += 1

    def tick(self) -> None:
        """Say how far the stage is, if nothing was said of it for PERIOD seconds."""
        with self._lock:
            stage, now = self._stage, self._clock()
            if stage is not None and now - stage.spoke >= PERIOD:
                stage.spoke = now
                self._say(stage.line(duration(now - stage.began)))

    def end(self) -> None:
        """Say what all stages took, unless one failed."""
        if not self._failed:
            self._say_skipped()
            self._say(f"done in {duration(self._clock() - self._began)}")

    def _enter(self, stage: _Stage | None) -> None:
        with self._lock:
            self._stage = stage

    def _say_skipped(self) -> None:
        if self._skipped:
            stages = "stage was" if self._skipped == 1 else "stages were"
            self._say(f"{self._bracket()} {self._skipped} {stages} {self._why}")
            self._skipped = 0

    def _bracket(self) -> str:
        return f"[{self._number:>{len(str(self._total))}}/{self._total}]"


def duration(seconds: float) -> str:
    """Put a time in words: "0.4 s", "45 s", "2 min 05 s", "3 h 10 min"; from 10 s on whole seconds that have passed."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 2:
        return f"{int(seconds)} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


@contextmanager
def spoken(total: int, say: Say) -> Iterator[Lines]:
    """Surround the whole work: its lines, those that long stages say in between, and one at the end."""
    lines = Lines(total, say)
    with beating(lines.tick):
        yield lines
    lines.end()


@contextmanager
def beating(tick: Callable[[], None], every: float = BEAT) -> Iterator[None]:
    """Call `tick` from a thread every so many seconds; when this is left, the thread has ended."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(every):
            tick()

    thread = threading.Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Voice:
    """Writes lines to a stream, each at once. A line that cannot be written is lost, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, line: str) -> None:
        """Write one line."""
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except BrokenPipeError:
            send_nowhere(self._stream)
        except OSError:  # a full disk, say: where the log cannot be written, the results still may
            pass


def send_nowhere(stream: TextIO) -> None:
    """Discard what is written from now on, and what waits in the stream: nobody reads it.

    Without this the interpreter would fail to flush it at its end, and turn the exit code of good work into 120.
    """
    with suppress(OSError):  # a stream without a file has nothing to discard
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)

"""What long work says: lines of a log by a clock of the test, bars on a terminal, nothing when asked or unheard."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest

from unforgotten.audit.progress.bars import Bars
from unforgotten.audit.progress.lines import PERIOD, Lines, Voice, beating, duration
from unforgotten.audit.progress.stages import SILENT, counted, draws_bars, progress_on

DEADLOCK_SECONDS = 60.0  # a thread that has not run by then never will


class Log:
    """Lines, and the clock that they are written by."""

    def __init__(self, total: int) -> None:
        self.said: list[str] = []
        self.times: list[float] = []
        self.now = 100.0
        self.lines = Lines(total, self._say, lambda: self.now)

    def _say(self, line: str) -> None:
        self.said.append(line)
        self.times.append(self.now)

    def wait(self, seconds: int, beat: float = 1.0) -> None:
        """Let time go by; the thread would look at the clock every `beat` seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + beat)
            self.lines.tick()


def test_a_short_stage_is_one_line() -> None:
    log = Log(41)
    with log.lines.stage("train base") as step:
        for k in range(6):
            log.wait(1)
            step(k + 1, 6, f"loss {6 - k:.1f}")
    with log.lines.stage("evaluate base none"):
        log.now += 0.25
    log.lines.end()
    assert log.said == [
        "[ 1/41] train base: 6/6 steps, loss 1.0, done in 6.0 s",
        "[ 2/41] evaluate base none: done in 0.2 s",
        "done in 6.2 s",
    ]


def test_a_long_stage_speaks_every_ten_seconds_and_at_its_end() -> None:
    log = Log(2)
    with log.lines.stage("unlearn NPO_GDR bf16") as step:
        for k in range(45):
            step(k, 1000, "forget loss 0.31")
            log.wait(1)
    assert log.said == [
        f"[1/2] unlearn NPO_GDR bf16: {k}/1000 steps, forget loss 0.31, {end}"
        for k, end in ((9, "10 s"), (19, "20 s"), (29, "30 s"), (39, "40 s"), (44, "done in 45 s"))
    ]


def test_a_stage_without_steps_is_heard_of() -> None:
    log = Log(1)
    with log.lines.stage("open"):
        log.wait(21)
    assert log.said == ["[1/1] open: 10 s", "[1/1] open: 20 s", "[1/1] open: done in 21 s"]


@pytest.mark.parametrize("beat", [0.3, 1.0, 7.0, 25.0])
def test_two_lines_within_a_stage_are_a_period_apart(beat: float) -> None:
    log = Log(2)
    for name in ("first", "second"):
        before = len(log.times)
        with log.lines.stage(name):
            began = log.now
            log.wait(95, beat)
        inside = [began, *log.times[before:-1]]
        assert len(inside) > 1
        assert all(b - a >= PERIOD for a, b in pairwise(inside))


def test_nothing_is_said_between_stages() -> None:
    log = Log(1)
    log.wait(30)
    with log.lines.stage("only"):
        pass
    log.wait(30)
    assert log.said == ["[1/1] only: done in 0.0 s"]


def test_a_stage_that_fails_says_no_more_and_neither_does_the_end() -> None:
    log = Log(3)

    def fail() -> None:
        with log.lines.stage("open"):
            log.wait(12)
            raise ValueError("tensor 'x' must be finite")

    with pytest.raises(ValueError, match="finite"):
        fail()
    log.wait(30)
    log.lines.end()
    assert log.said == ["[1/3] open: 10 s"]


def test_stages_that_were_done_before_are_one_line_without_a_time() -> None:
    log = Log(12)
    for _ in range(9):
        log.lines.skip()
    with log.lines.stage("unlearn NPO fp32"):
        pass
    log.lines.skip()
    with log.lines.stage("evaluate NPO fp32 none"):
        pass
    log.lines.end()
    assert log.said == [
        "[ 9/12] 9 stages were done before",
        "[10/12] unlearn NPO fp32: done in 0.0 s",
        "[11/12] 1 stage was done before",
        "[12/12] evaluate NPO fp32 none: done in 0.0 s",
        "done in 0.0 s",
    ]


def test_stages_that_are_skipped_for_another_reason_say_it() -> None:
    log = Log(3)
    log.lines.skip()
    log.lines.skip("of depths that were not reached")
    log.lines.skip("of depths that were not reached")
    log.lines.end()
    assert log.said[:2] == ["[1/3] 1 stage was done before", "[3/3] 2 stages were of depths that were not reached"]


def test_a_run_that_was_whole_says_so() -> None:
    log = Log(2)
    log.lines.skip()
    log.lines.skip()
    log.lines.end()
    assert log.said == ["[2/2] 2 stages were done before", "done in 0.0 s"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.449, "0.4 s"),
        (9.9, "9.9 s"),
        (10, "10 s"),
        (45.9, "45 s"),
        (119.99, "119 s"),
        (120, "2 min 00 s"),
        (725, "12 min 05 s"),
        (3599.9, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (11400, "3 h 10 min"),
        (360000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_things_of_a_known_number_are_counted_as_they_begin() -> None:
    seen: list[tuple[int, int, str]] = []
    begin = counted(lambda done, total, text="": seen.append((done, total, text)), 2)
    for name in ("target", "Q(target) int4-g64", ""):
        begin(name)
    assert seen == [(0, 2, "target"), (1, 2, "Q(target) int4-g64"), (2, 2, "")]


def test_the_thread_ticks_and_ends() -> None:
    ticked = threading.Event()
    before = threading.active_count()
    with beating(ticked.set, every=0.001):
        assert ticked.wait(DEADLOCK_SECONDS)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(KeyboardInterrupt), beating(ticked.set, every=0.001):
        raise KeyboardInterrupt
    assert threading.active_count() == before


class Watched(io.StringIO):
    """A stream that notes its text at every flush, and that fails on demand."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.flushed: list[str] = []
        self.error = error

    def flush(self) -> None:
        if self.error is not None:
            raise self.error
        self.flushed.append(self.getvalue())


def test_every_line_is_written_at_once() -> None:
    stream = Watched()
    voice = Voice(stream)
    voice("one")
    voice("two")
    assert stream.flushed == ["one\n", "one\ntwo\n"]


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_line_that_cannot_be_written_stops_nothing(code: int) -> None:
    stream = Watched(OSError(code, os.strerror(code)))
    Voice(stream)("one")
    stream.error = None
    Voice(stream)("two")
    assert stream.flushed == ["one\ntwo\n"]


UNHEARD = """
import sys
from unforgotten.audit.progress.stages import progress_on
with progress_on(sys.stderr, 2) as progress:
    for name in ("first", "second"):
        with progress.stage(name):
            pass
print("whole")
"""


def test_work_whose_reader_is_gone_ends_well() -> None:
    """A real pipe without a reader, and the exit code too: what waits in a stream is flushed at the very end."""
    read, write = os.pipe()
    os.close(read)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", UNHEARD], stdout=subprocess.PIPE, stderr=write, text=True, check=False, env=buffered
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stdout) == (0, "whole\n")


def test_a_process_without_standard_error_is_silent() -> None:
    with progress_on(None, 2) as progress:
        assert progress is SILENT


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with progress_on(stream, 1, quiet=True) as progress:
        progress.skip()
        with progress.stage("train base") as step:
            step(1, 2, "loss 1.0")
    assert stream.getvalue() == ""


def test_a_stream_that_is_no_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich call anything a terminal
    stream = io.StringIO()
    with progress_on(stream, 1) as progress, progress.stage("train [base]", "batches") as step:
        step(1, 2, "loss 1.0")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("[1/1] train [base]: 1/2 batches, loss 1.0, done in ")
    assert second.startswith("done in ")


@contextmanager
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    """A pseudo-terminal: what is read from the first is what was written to the second."""
    pty = pytest.importorskip("pty", reason="needs a system with pseudo-terminals")
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as stream:
            yield master, stream
    finally:
        os.close(master)


def all_of(master: int) -> str:
    """What was written so far."""
    drawn = b""
    with suppress(BlockingIOError):
        while True:
            drawn += os.read(master, 2**16)
    return drawn.decode()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False)])
def test_bars_are_for_terminals_that_can_draw(term: str, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    with terminal() as (_, stream):
        assert draws_bars(stream) == drawn
    assert not draws_bars(io.StringIO())


def test_bars_name_the_stage_and_escape_what_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal() as (master, stream):
        with progress_on(stream, 3) as progress:
            assert isinstance(progress, Bars)
            progress.skip()
            with progress.stage("train [red]base") as step:
                step(1, 2, "loss [b]1.0")
        drawn = all_of(master)
    assert "train [red]base" in drawn
    assert "2/3" in drawn

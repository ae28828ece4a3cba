"""The pytest plugin behind `unforgotten verify` in a log: lines of progress in place of pytest's dots.

Loaded by `-p`; under `-qq` it says nothing and still keeps the dots away.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

import pytest

from unforgotten.audit.progress.stages import SILENT, Progress, Step, ignore

Status = tuple[str, str, str | tuple[str, Mapping[str, bool]]]
"""Category, letter and word of a report, as pytest wants them."""

STAGES = ("collect tests", "test")
OPTIONS = ("-p", __name__, "-o", "console_output_style=classic")
"""What loads it, and keeps the percentages away that pytest puts behind its dots."""


class Counter:
    """Counts tests that ended, and tells of them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: Step = ignore
        self._done, self._total = 0, 0
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Surround the first stage."""
        with self._progress.stage(STAGES[0]):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Surround the second one."""
        self._total = len(session.items)
        with self._progress.stage(STAGES[1], "tests") as self._step:
            return (yield)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell which file is at work."""
        self._tell(f", in {nodeid.partition('::')[0].rpartition('/')[2]}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure, of the test or of what it needs."""
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        """Count the test."""
        self._done += 1
        self._tell("")

    def _tell(self, more: str) -> None:
        self._step(self._done, self._total, f"{len(self._failed)} failed{more}")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Speak while the tests run."""
    with _progress(quiet=config.get_verbosity() < -1) as progress:
        config.pluginmanager.register(Counter(progress))
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus() -> Generator[None, Status, Status]:
    """Show no letter; the word stays, for the list of failures at the end."""
    category, _, word = yield
    return category, "", word


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    """Speak on what standard output is now: pytest captures it while a test runs."""
    if quiet:
        yield SILENT
        return
    from unforgotten.audit.progress.lines import Voice, spoken

    with (
        os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace") as stream,
        spoken(len(STAGES), Voice(stream)) as lines,
    ):
        yield lines

"""Runs tests in forks of a process with the libraries loaded: against a mutant, or to learn which test runs which line.

A script of its own, started by `mutants.py` in a copy of the tree: it imports nothing of the project, so that every
fork imports the project afresh, the mutated module from the source it is handed and the rest from the copy. No file is
ever mutated, so nothing is left behind by `kill -9`. One JSON object a line in, one out.

A job names the tests or files and, for a mutant, the module and its source; the answer says how the fork ended, which
tests failed, and what each took:

    {"tests": ["verification/test_flips.py::test_a"], "module": "unforgotten.theory.laws.flips", "source": "…", …}
    {"outcome": 1, "failed": {"verification/test_flips.py::test_a": "E   assert …"}, "seconds": {…}, …}
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

MEMORY = 4 << 30
"""Bytes of data that a fork may hold: a mutated shape must not take the machine down."""

WAIT = 30.0
SILENCES = 30
"""A fork that says nothing in so many waits of so many seconds hangs: CPU time says nothing of a deadlock. Waits are
counted, not the time, so that a machine that stops us for an hour does not make a hang."""

OPTIONS = [
    "-q",
    "--assert=plain",
    "--tb=line",
    "-p",
    "no:cacheprovider",
    "-p",
    "_hypothesis_pytestplugin",
    "--ignore=verification/test_planted_mistakes.py",  # runs a process of its own, without the mutant
]


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Finds one module, with another source than the file's."""

    def __init__(self, name: str, path: str, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        return self.source.encode()

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Told:
    """A pytest plugin: runs the wanted tests in the wanted order, and says what happens as it happens."""

    def __init__(
        self, wanted: Sequence[str], say: int, limits: dict[str, float], each: float, examples: int | None
    ) -> None:
        self.order = {test: i for i, test in enumerate(wanted)}
        self.say, self.limits, self.each, self.examples = say, limits, each, examples

    def write(self, **what: Any) -> None:
        os.write(self.say, (json.dumps(what) + "\n").encode())

    def pytest_sessionstart(self) -> None:
        """Load a profile like `ci` that does not shrink a failing example: that it fails is enough."""
        from hypothesis import Phase, settings

        ci = settings.get_profile("ci")
        settings.register_profile(
            "mutants",
            ci,
            phases=[Phase.explicit, Phase.generate],
            database=None,
            report_multiple_bugs=False,
            max_examples=self.examples or ci.max_examples,
        )
        settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.order:
            items[:] = [item for item in items if item.nodeid in self.order]
            items.sort(key=lambda item: self.order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        clear_caches()
        self.write(start=item.nodeid)
        if limit := self.limits.get(item.nodeid, self.each):
            signal.setitimer(signal.ITIMER_PROF, limit)  # not caught: ends the process
        start = time.process_time()
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.write(end=item.nodeid, seconds=round(time.process_time() - start, 4))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write(fail=report.nodeid, how=str(report.longrepr).strip().splitlines()[-1][:200])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(fail=report.nodeid, how=str(report.longrepr).strip().splitlines()[-1][:200])


class Contexts:
    """A pytest plugin: names the test, or the test file being collected, to coverage."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, object, object]:
        self.coverage.switch_context(f"collecting {collector.nodeid.split('::')[0]}")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.coverage.switch_context(item.nodeid)
        return (yield)


def clear_caches() -> None:
    """Forget every cached result of the project: what one test has computed, the next must compute again."""
    for name, module in list(sys.modules.items()):
        if name.startswith("unforgotten."):
            for thing in list(vars(module).values()):
                if isinstance(thing, functools._lru_cache_wrapper):
                    thing.cache_clear()


def run_tests(job: dict[str, Any], say: int) -> int:
    """Run the tests in the fork, and return pytest's exit code."""
    if job.get("module"):
        sys.meta_path.insert(0, Mutated(job["module"], job["path"], job["source"]))
    limits = job.get("limits", {}), job.get("each", 0.0)
    told = Told(job["tests"], say, *limits, job.get("examples"))
    files = list(dict.fromkeys(test.split("::")[0] for test in job["tests"])) or job["files"]
    plugins: list[object] = [told]
    cover = None
    if measured := job.get("measure"):
        import coverage

        cover = coverage.Coverage(data_file=None, source=measured["folders"], branch=False)
        cover.start()
        plugins.append(Contexts(cover))
    stop = ["-x"] if job.get("stop", True) else []
    code = int(pytest.main([*OPTIONS, *stop, *files], plugins))
    if cover is not None and measured:
        cover.stop()
        data = cover.get_data()
        lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        Path(measured["to"]).write_text(json.dumps(lines))
    return code


def fork(job: dict[str, Any], log: str) -> dict[str, Any]:
    """Run one job in a fork and tell how it ended.

    `outcome` is the exit code of pytest, `timeout` (CPU of one test), `hangs` (no word for too long) or `signal N`.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.close(read)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = run_tests(job, write)
        finally:
            os._exit(code)
    os.close(write)
    said, hangs = _listen(read)
    os.close(read)
    _kill_group(child)
    status = os.wait4(child, 0)
    return {**_summary(said), **_ending(status[1], hangs), "cpu": status[2].ru_utime + status[2].ru_stime}


def _listen(pipe: int) -> tuple[list[dict[str, Any]], bool]:
    """Read what the fork says until it closes the pipe; also return True if it fell silent."""
    data, silent = b"", 0
    while silent < SILENCES:
        if not select.select([pipe], [], [], WAIT)[0]:
            silent += 1
        elif chunk := os.read(pipe, 65536):
            data, silent = data + chunk, 0
        else:
            break
    return [json.loads(line) for line in data.splitlines()], silent == SILENCES


def _kill_group(child: int) -> None:
    """End what is left of the fork, and what it has started; a fork that has closed the pipe is given a moment to end."""
    for _ in range(200):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.05)
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _summary(said: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "last": next((s["start"] for s in reversed(said) if "start" in s), None),
        "failed": {s["fail"]: s["how"] for s in said if "fail" in s},
        "seconds": {s["end"]: s["seconds"] for s in said if "end" in s},
    }


def _ending(status: int, hangs: bool) -> dict[str, Any]:
    if hangs:
        return {"outcome": "hangs"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"outcome": "timeout" if number == signal.SIGPROF else f"signal {number}"}
    return {"outcome": os.WEXITSTATUS(status)}


def main() -> None:
    """Load the named libraries, then serve jobs from stdin until it is closed."""
    for library in sys.argv[1:]:
        try:
            importlib.import_module(library)
        except ImportError:
            continue
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(fork(job, job["log"])), flush=True)


if __name__ == "__main__":
    main()

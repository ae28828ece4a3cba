"""`python -m unforgotten.verification.recording.seeds --seeds 200`: the tests marked `statistical` under many seeds.

Each seed runs in a process of its own, forked from one that has already imported and run the tests once, so that a
seed costs what its samples cost: laws that depend on no sample are computed and cached once. UNFORGOTTEN_SEED sets the samples and `--hypothesis-seed` the parameters.

    python -m unforgotten.verification.recording.seeds --seeds 3 verification/test_laws.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unforgotten.verification.chance import COUNTS, FALSE_ALARM, SEED_VARIABLE
from unforgotten.verification.recording.statistical import statistical_tests

SCHEMA = "unforgotten.seeds/1"
VERIFICATION = Path(__file__).parents[1]
LOG = VERIFICATION / "published" / "seeds-200.json"
OPTIONS = ("-q", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-m", "statistical")


class Collected:
    """A plugin that keeps the files of the selected tests, and the outcome of each."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.passed = 0
        self.failed: list[str] = []

    def pytest_collection_finish(self, session: Any) -> None:
        """Note the files that hold a selected test."""
        self.files = sorted({str(item.path) for item in session.items})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what passed, and name what did not."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1


def collect(targets: list[str]) -> list[str]:
    """Import and collect once; the files that hold a marked test.

    Raises:
        ValueError: there is none, or a file cannot be imported.
    """
    found = Collected()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*OPTIONS, "--collect-only", *targets], plugins=[found])
    if code != pytest.ExitCode.OK or not found.files:
        raise ValueError(f"targets must hold statistical tests, got code={int(code)}\n{said.getvalue()[-1500:]}")
    return found.files


def run_one(seed: int, files: list[str]) -> dict[str, Any]:
    """Run the tests under one seed, in this process."""
    os.environ[SEED_VARIABLE] = str(seed)
    COUNTS.clear()
    found, started, used = Collected(), time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*OPTIONS, f"--hypothesis-seed={seed}", *files], plugins=[found])
    return {
        "seed": seed,
        "code": int(code),
        "passed": found.passed,
        "failed": found.failed,
        "comparisons": COUNTS["comparisons"],
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        **({"output": said.getvalue()[-8000:]} if found.failed or code else {}),
    }


def fill_caches(files: list[str]) -> None:
    """Run everything once in this process; what it says is not counted."""
    before = os.environ.get(SEED_VARIABLE)
    run_one(0, files)
    os.environ.pop(SEED_VARIABLE)
    if before is not None:
        os.environ[SEED_VARIABLE] = before


def in_a_child(seed: int, files: list[str]) -> dict[str, Any]:
    """Run the tests under one seed in a process forked from this one; what it left behind dies with it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            with os.fdopen(write, "w", encoding="utf-8") as stream:
                json.dump(run_one(seed, files), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        return {
            "seed": seed,
            "code": status,
            "passed": 0,
            "failed": ["the process ended early"],
            "comparisons": 0,
            "seconds": 0.0,
            "cpu_seconds": 0.0,
        }
    result: dict[str, Any] = json.loads(text)
    return result


def run(seeds: range, targets: list[str], log: Path) -> dict[str, Any]:
    """Run all seeds, one after the other; the log is rewritten after each."""
    files = collect(targets)
    fill_caches(files)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        runs.append(in_a_child(seed, files))
        content = as_object(runs)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        last = runs[-1]
        print(
            f"seed {seed}: {last['passed']} passed, {len(last['failed'])} failed, "
            f"{last['cpu_seconds']} s of processor, {last['seconds']} s",
            *last["failed"],
            file=sys.stderr,
            flush=True,
        )
    return as_object(runs)


def as_object(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the log holds: the sums, then every seed."""
    comparisons = sum(r["comparisons"] for r in runs)
    return {
        "schema": SCHEMA,
        "seeds": len(runs),
        "seeds_with_a_failure": sum(bool(r["failed"] or r["code"]) for r in runs),
        "tests": max((r["passed"] + len(r["failed"]) for r in runs), default=0),
        "comparisons": comparisons,
        "chance_of_any_false_alarm_at_most": comparisons * FALSE_ALARM,
        "seconds": round(sum(r["seconds"] for r in runs), 1),
        "cpu_seconds": round(sum(r["cpu_seconds"] for r in runs), 1),
        "runs": runs,
    }


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m unforgotten.verification.recording.seeds", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("targets", nargs="*", default=sampled_files(), help="files or folders of tests")
    return parser.parse_args(arguments)


def sampled_files() -> list[str]:
    """List the files of `verification/` itself that draw samples, without `conformance`, which draws inputs only."""
    return sorted(str(path) for path in VERIFICATION.glob("test_*.py") if statistical_tests(path))


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds that are asked for; return 0 where no test failed under any, otherwise 1."""
    options = parsed(arguments)
    os.environ.setdefault("HYPOTHESIS_PROFILE", "seeds")
    seeds = range(options.first, options.first + options.seeds)
    return int(run(seeds, options.targets, options.log)["seeds_with_a_failure"] > 0)


if __name__ == "__main__":
    sys.exit(main())

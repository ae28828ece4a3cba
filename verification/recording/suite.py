"""The whole suite in a process of its own: `unforgotten verify` without a quantizer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

from unforgotten.audit.progress.lines import Voice
from unforgotten.audit.progress.stages import draws_bars
from unforgotten.verification.contracts.search import EXAMPLES, SCHEMA
from unforgotten.verification.recording.suite_plugin import OPTIONS

ALL = "nightly or not nightly"
MARKERS = {"dev": "not nightly", "ci": "not nightly", "nightly": ALL}
TESTS_FAILED, BAD_USAGE = 1, 4  # of pytest
HOLDS, FAILS, USAGE = 0, 1, 2  # of `unforgotten verify`


def command(profile: str, report: Path) -> list[str]:
    """Return the call of pytest, equal with and without our pyproject.toml around the package."""
    return [
        sys.executable,
        "-m",
        "pytest",
        "--pyargs",
        "unforgotten.verification",
        "-q",
        "-o",
        "addopts=",
        "-o",
        "markers=nightly: takes minutes",
        "--import-mode=importlib",
        "-m",
        MARKERS[profile],
        f"--junitxml={report}",
    ]


def run_suite(profile: str, *, quiet: bool = False) -> dict[str, Any]:
    """Run the tests; what they print goes to standard error. The object that `--json` prints.

    Args:
        profile: a key of `EXAMPLES`.
        quiet: whether to keep progress back; failures are printed all the same.

    Raises:
        ValueError: no such profile.
    """
    if profile not in EXAMPLES:
        raise ValueError(f"profile must be one of {', '.join(EXAMPLES)}, got profile={profile!r}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words, stream = command(profile, report), sys.stderr
        environment = {**os.environ, "HYPOTHESIS_PROFILE": profile}
        if stream is not None and draws_bars(stream) and not quiet:
            code = subprocess.run(words, env=environment, stdout=stream, check=False).returncode
        else:
            words += [*OPTIONS, *(["-q"] if quiet else [])]
            code = _relayed(words, environment, stream)
        counts = counted(report) if report.exists() else {}
    return {
        "schema": SCHEMA,
        "profile": profile,
        "pytest": code,
        "verdict": "holds" if code == 0 else "fails",
        **counts,
    }


def _relayed(words: list[str], environment: dict[str, str], stream: TextIO | None) -> int:
    """Run a command, and pass its lines on while anybody reads them: pytest itself ends where nobody does."""
    say = (lambda line: None) if stream is None else Voice(stream)
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, encoding="utf-8", errors="backslashreplace"
    ) as child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                say(line.rstrip("\n"))
        except BaseException:
            child.kill()
            raise
    return child.returncode


def exit_code(pytest_code: int) -> int:
    """Return 0 where all hold, 2 where pytest refused its arguments, else 1: a suite that cannot run shows nothing."""
    return {0: HOLDS, BAD_USAGE: USAGE}.get(pytest_code, FAILS)


def counted(report: Path) -> dict[str, Any]:
    """Read tests, failures, errors, skipped and seconds from a JUnit file."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    return {name: int(suite.get(name, 0)) for name in names} | {"seconds": float(suite.get("time", 0))}

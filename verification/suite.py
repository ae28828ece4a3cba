"""The whole suite in a process of its own: `unforgotten verify` without a quantizer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unforgotten.verification.third_party import EXAMPLES, SCHEMA

ALL = "nightly or not nightly"
MARKERS = {"dev": "not nightly", "ci": "not nightly", "nightly": ALL}
TESTS_FAILED, BAD_USAGE = 1, 4  # of pytest
HOLDS, FAILS, USAGE = 0, 1, 2  # of `unforgotten verify`


def command(profile: str, report: Path) -> list[str]:
    """The call of pytest, which says the same with and without our pyproject.toml around the package."""
    return [
        sys.executable, "-m", "pytest", "--pyargs", "unforgotten.verification", "-q",
        "-o", "addopts=", "-o", "markers=nightly: takes minutes", "--import-mode=importlib",
        "-m", MARKERS[profile], f"--junitxml={report}",
    ]  # fmt: skip


def run_suite(profile: str) -> dict[str, Any]:
    """Run the tests; what they print goes to standard error. The object that `--json` prints.

    Raises:
        ValueError: no such profile.
    """
    if profile not in EXAMPLES:
        raise ValueError(f"profile must be one of {', '.join(EXAMPLES)}, got profile={profile!r}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            command(profile, report),
            env={**os.environ, "HYPOTHESIS_PROFILE": profile},
            stdout=sys.__stderr__,
            check=False,
        )
        counts = counted(report) if report.exists() else {}
    return {"schema": SCHEMA, "profile": profile, "pytest": done.returncode,
            "verdict": "holds" if done.returncode == 0 else "fails", **counts}  # fmt: skip


def exit_code(pytest_code: int) -> int:
    """0 where all hold, 2 where pytest refused its arguments, otherwise 1: a suite that cannot run shows nothing."""
    return {0: HOLDS, BAD_USAGE: USAGE}.get(pytest_code, FAILS)


def counted(report: Path) -> dict[str, Any]:
    """Tests, failures, errors, skipped and seconds, from a JUnit file."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    return {name: int(suite.get(name, 0)) for name in names} | {
        "seconds": float(suite.get("time", 0))
    }

"""The committed record of conformance, which the claim "bit for bit" rests on: it is of every file, and nothing failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unforgotten.verification.conformance.record import LIBRARIES, Recorder, version_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "verification/conformance"
RECORD = ROOT / "verification/published/conformance.json"
FILES: dict[str, dict[str, Any]] = json.loads(RECORD.read_text())["files"]


def test_libraries__are_named_for_every_file_of_conformance() -> None:
    assert set(LIBRARIES) == {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("test_*.py")}


@pytest.mark.parametrize("name", LIBRARIES)
def test_record__has_runs_with_every_library_and_no_failure(name: str) -> None:
    entry = FILES[name]
    assert entry["passed"] > 0
    assert entry["failed"] == entry["skipped"] == 0
    assert set(entry["libraries"]) == set(LIBRARIES[name])
    assert all(entry["libraries"].values())


def test_record__is_of_the_releases_that_make_conformance_installs() -> None:
    lines = [
        line
        for file in ("requirements-conformance.txt", "requirements-conformance-legacy.txt")
        for line in (ROOT / file).read_text().splitlines()
        if "==" in line
    ]
    pinned: dict[str, set[str]] = {}
    for line in lines:
        distribution, _, release = line.partition("==")
        pinned.setdefault(distribution.lower().replace("_", "-"), set()).add(release)
    for entry in FILES.values():
        for library, release in entry["libraries"].items():
            assert library == "libggml" or release in pinned[library]


def report_of(outcome: Any, when: Any) -> pytest.TestReport:
    nodeid = "verification/conformance/test_gguf.py::test_x"
    return pytest.TestReport(nodeid, ("", 0, ""), {}, outcome, None, when)


def test_recorder__counts_by_file_and_keeps_what_did_not_run(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    other = {"passed": 3, "skipped": 0, "failed": 0}
    path.write_text(json.dumps({"files": {"test_hqq.py": other}}))
    recorder = Recorder(path)
    outcomes = ("passed", "call"), ("failed", "call"), ("failed", "setup"), ("passed", "setup")
    for outcome, when in outcomes:  # a setup that passes is no outcome of a test
        recorder.pytest_runtest_logreport(report_of(outcome, when))
    recorder.pytest_sessionfinish()
    written = json.loads(path.read_text())["files"]
    assert written["test_hqq.py"] == other
    entry = written["test_gguf.py"]
    assert (entry["passed"], entry["skipped"], entry["failed"]) == (1, 0, 2)
    assert entry["libraries"] == {"gguf": version_of("gguf")}

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from unforgotten.theory.claims import CLAIMS
from unforgotten.verification.verdicts import SCHEMA, Recorder, claim_rows, verdict

CLAIM = next(iter(CLAIMS.values()))
NAME = CLAIM.function.rpartition(".")[2]


def report(nodeid: str, outcome: str, when: str = "call") -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, outcome=outcome, when=when, passed=outcome == "passed")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["passed"], "holds"),
        (["passed", "failed"], "refuted"),
        (["skipped"], "not run"),
        ([], "not run"),
    ],
)
def test_verdicts__follow_the_outcomes(outcomes: list[str], expected: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "verdicts.json", "dev")
    for outcome in outcomes:
        recorder.pytest_runtest_logreport(report(f"x.py::test_{NAME}__holds[1]", outcome))
    recorder.pytest_sessionfinish()
    row = next(r for r in claim_rows(recorder.path) if r["function"] == CLAIM.function)
    assert row["verdict"] == expected
    assert row["outcomes"] == Counter(outcomes)


def test_verdicts__ignore_set_up_that_passed_and_tests_of_no_claim(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "verdicts.json", "dev")
    recorder.pytest_runtest_logreport(report(f"x.py::test_{NAME}__holds", "passed", "setup"))
    recorder.pytest_runtest_logreport(report("x.py::test_nothing__holds", "failed"))
    assert recorder.result()["claims"] == {}


def test_verdicts__of_a_failed_proof_refute() -> None:
    assert verdict({"passed": 5}, ["holds", "failed"]) == "refuted"


def test_verdicts__of_another_schema_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps({"schema": "other/1", "claims": {}, "proofs": {}}))
    with pytest.raises(ValueError, match=f"schema must be {SCHEMA}"):
        claim_rows(path)

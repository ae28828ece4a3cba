from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unforgotten.theory.claims import PROOFS, load_claims
from unforgotten.theory.proofs.run import load_proofs
from unforgotten.verification.recording.recorded import RECORDED, SCHEMA, claim_rows, verdict

CLAIM = next(iter(load_claims().values()))


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [({"passed": 1}, "holds"), ({"passed": 1, "failed": 1}, "refuted"), ({"skipped": 1}, "not run"), ({}, "not run")],
)
def test_verdicts__follow_the_outcomes(outcomes: dict[str, int], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    claims: list[dict[str, Any]] = [{"function": CLAIM.function, "tests": outcomes}]
    path.write_text(json.dumps({"schema": SCHEMA, "profile": "dev", "claims": claims, "proofs": {}}))
    row = next(r for r in claim_rows(path) if r["function"] == CLAIM.function)
    assert (row["verdict"], row["outcomes"], row["profile"]) == (expected, outcomes, "dev")


def test_verdicts__of_a_failed_proof_refute() -> None:
    assert verdict({"passed": 5}, ["holds", "failed"]) == "refuted"


def test_verdicts__of_another_schema_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": "other/1"}))
    with pytest.raises(ValueError, match=f"schema must be {SCHEMA}"):
        claim_rows(path)


def test_verdicts__of_the_committed_run_are_of_every_claim_and_proof() -> None:
    assert {row["function"] for row in claim_rows() if row["verdict"] == "holds"} == set(load_claims())
    proofs = json.loads(RECORDED.read_text(encoding="utf-8"))["proofs"]
    load_proofs()
    assert {f for f, p in proofs.items() if p["verdict"] == "holds"} == set(PROOFS)


def test_verdicts__of_the_committed_run_say_how_tight_every_bound_is() -> None:
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))["claims"]
    bounds = [row for row in rows if row["function"].endswith("_upper_bound")]
    assert {row["function"] for row in bounds} == {f for f in load_claims() if f.endswith("_upper_bound")}
    assert [row["function"] for row in bounds if not 0 < row["tightness"]["ratio"] <= 1] == []

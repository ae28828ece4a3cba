"""What the committed run of the suite said of every statement: `verification-report.json`, see `report`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unforgotten.theory.claims import Claim, load_claims

VERIFICATION = Path(__file__).parents[1]
RECORDED = VERIFICATION / "verification-report.json"
SCHEMA = "unforgotten.verification-report/1"


@cache
def named_tests() -> Mapping[str, list[str]]:
    """Find for each x the tests `test_x__property`: files are read, not run, so that no missing library hides one."""
    found: dict[str, list[str]] = {}
    for file in sorted(VERIFICATION.rglob("test_*.py")):
        for test in names_of_tests(file.read_text(encoding="utf-8")):
            if "__" in test:
                name = test.removeprefix("test_").split("__")[0]
                found.setdefault(name, []).append(f"{file.relative_to(VERIFICATION)}::{test}")
    return found


def names_of_tests(source: str) -> Iterator[str]:
    """Yield the names of the functions `test_…` of a module, methods of classes too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def claim_rows(path: Path = RECORDED) -> list[dict[str, Any]]:
    """Return one object a claim: what it says, where from, its tests, its proofs, and the recorded verdict.

    Raises:
        ValueError: the file is of another schema.
    """
    report = json.loads(path.read_text(encoding="utf-8"))
    if report["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {report['schema']!r}")
    outcomes = {row["function"]: row["tests"] for row in report["claims"]}
    tests = named_tests()
    ordered = sorted(load_claims().values(), key=lambda c: (c.id[0], int(c.id[1:]), c.function))
    return [
        {**_row(c, outcomes.get(c.function, {}), report["proofs"], tests), "profile": report["profile"]}
        for c in ordered
    ]


def _row(
    claim: Claim, outcomes: Mapping[str, int], proofs: Mapping[str, Mapping[str, str]], tests: Mapping[str, list[str]]
) -> dict[str, Any]:
    own = [
        {"function": function, **{k: v for k, v in p.items() if k != "claim"}}
        for function, p in proofs.items()
        if p["claim"] == claim.id
    ]
    return {
        "id": claim.id,
        "kind": claim.kind,
        "function": claim.function,
        "statement": claim.statement,
        "source": claim.source,
        "tests": tests.get(claim.function.rpartition(".")[2], []),
        "proofs": own,
        "outcomes": dict(outcomes),
        "verdict": verdict(outcomes, [p["verdict"] for p in own]),
    }


def verdict(outcomes: Mapping[str, int], proofs: list[str]) -> str:
    """Tell whether a statement holds: "refuted" where a test or a proof failed, "not run" where none passed."""
    if outcomes.get("failed", 0) or "failed" in proofs:
        return "refuted"
    return "holds" if outcomes.get("passed", 0) else "not run"

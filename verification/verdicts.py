"""What the last recorded run of the suite said of every statement: `verdicts.json`, written by `--verdicts PATH`."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unforgotten.theory.claims import CLAIMS, PROOFS, Claim

HERE = Path(__file__).parent
RECORDED = HERE / "verdicts.json"
SCHEMA = "unforgotten.verdicts/1"
_TEST = re.compile(r"::test_([a-zA-Z0-9_]+?)__\w+")
_PROOF = re.compile(r"::test_proofs__hold\[([\w.]+)\]")


def named_tests() -> dict[str, list[str]]:
    """For each x the tests `test_x__property` of this package, read and not run, so that no missing library hides one."""
    found: dict[str, list[str]] = {}
    for file in sorted(HERE.rglob("test_*.py")):
        for test in names_of_tests(file.read_text(encoding="utf-8")):
            if "__" in test:
                name = test.removeprefix("test_").split("__")[0]
                found.setdefault(name, []).append(f"{file.relative_to(HERE)}::{test}")
    return found


def names_of_tests(source: str) -> Iterator[str]:
    """The functions `test_…` of a module, methods of classes too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Recorder:
    """A pytest plugin that counts the outcomes of each claim's tests and of each proof."""

    path: Path
    profile: str
    tests: dict[str, Counter[str]] = field(default_factory=dict)
    proofs: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what ran, and what failed or was skipped before it could run."""
        if report.when != "call" and report.passed:
            return
        if match := _PROOF.search(report.nodeid):
            self.proofs[match[1]] = "holds" if report.passed else report.outcome
        if match := _TEST.search(report.nodeid):
            self.tests.setdefault(match[1], Counter())[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self.path.write_text(json.dumps(self.result(), indent=1) + "\n")

    def result(self) -> dict[str, Any]:
        """The object of `verdicts.json`."""
        return {
            "schema": SCHEMA,
            "profile": self.profile,
            "claims": {
                function: dict(sorted(self.tests[name].items()))
                for function, name in sorted((f, f.rpartition(".")[2]) for f in CLAIMS)
                if name in self.tests
            },
            "proofs": {
                function: {"claim": p.claim, "method": p.method, "domain": p.domain,
                           "statement": p.statement, "verdict": self.proofs[function]}
                for function, p in sorted(PROOFS.items())
                if function in self.proofs
            },
        }  # fmt: skip


def claim_rows(path: Path = RECORDED) -> list[dict[str, Any]]:
    """One object a claim: what it says, where from, its tests, its proofs, and the recorded verdict.

    Raises:
        ValueError: the file is of another schema.
    """
    recorded = json.loads(path.read_text(encoding="utf-8"))
    if recorded["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {recorded['schema']!r}")
    tests = named_tests()
    ordered = sorted(CLAIMS.values(), key=lambda c: (c.id[0], int(c.id[1:]), c.function))
    return [_row(c, recorded, tests) for c in ordered]


def _row(claim: Claim, recorded: dict[str, Any], tests: dict[str, list[str]]) -> dict[str, Any]:
    counts = recorded["claims"].get(claim.function, {})
    proofs = [
        {"function": function, **{k: v for k, v in p.items() if k != "claim"}}
        for function, p in recorded["proofs"].items()
        if p["claim"] == claim.id
    ]
    return {
        "id": claim.id,
        "kind": claim.kind,
        "function": claim.function,
        "statement": claim.statement,
        "source": claim.source,
        "tests": tests.get(claim.function.rpartition(".")[2], []),
        "proofs": proofs,
        "outcomes": counts,
        "verdict": verdict(counts, [p["verdict"] for p in proofs]),
        "profile": recorded["profile"],
    }


def verdict(counts: dict[str, int], proofs: list[str]) -> str:
    """ "not run", "refuted" where a test or a proof failed, otherwise "holds"."""
    if counts.get("failed", 0) or "failed" in proofs:
        return "refuted"
    return "holds" if counts.get("passed", 0) else "not run"

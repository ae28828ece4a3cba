"""What `python -m unforgotten.theory.proofs` prints."""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest

from unforgotten.theory.claims import Claim, Proof, load_claims
from unforgotten.theory.proofs import run

HOLDS = run.Outcome(Proof("T1", "smt", "all reals", "m.f", "x = x"), "", 0.25)
FAILS = run.Outcome(Proof("T1", "exact", "1 … 4", "m.g", "x < x"), "refuted by {'x': '0'}", 0.0)


def test_entry__says_what_is_shown_where_and_whether() -> None:
    assert run.entry(HOLDS).splitlines() == [
        "T1   smt          0.2 s  holds: x = x",
        "                        for all reals",
    ]
    assert "FAILS: refuted by {'x': '0'}" in run.entry(FAILS)


def test_summary__has_a_row_a_statement_and_what_is_only_tested() -> None:
    bare = [Claim("T16", "exact", "a definition", "m.h", "rho = 0 as unlearned")]
    assert run.summary([HOLDS, FAILS], bare).splitlines() == [
        "T1   1 FAIL   1 exact, 1 smt",
        "T16  tested   exact: rho = 0 as unlearned",
    ]
    assert run.summary([HOLDS], []) == "T1   holds    1 smt"


@pytest.mark.parametrize(("outcomes", "code"), [([HOLDS], 0), ([HOLDS, FAILS], 1)])
def test_print_proofs__exits_1_where_one_fails(
    outcomes: list[run.Outcome], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_proofs", lambda _: iter(outcomes))
    assert run.print_proofs() == code
    assert capsys.readouterr().out.count("FAIL") == 2 * code


def test_only_tested__lists_claims_without_a_proof_alone() -> None:
    proved = {p.claim for p in run.load_proofs().values()}
    bare = run.only_tested()
    assert {c.id for c in bare} | proved >= {c.id for c in load_claims().values()}
    assert not {c.id for c in bare} & proved


def test_run_proofs__goes_by_statement() -> None:
    some = {name: p for name, p in run.load_proofs().items() if p.claim in ("T3", "T14")}
    assert len(some) == 4
    outcomes = list(run.run_proofs(some.values()))
    assert [o.proof.claim for o in outcomes] == ["T3", "T14", "T14", "T14"]
    assert not any(o.error for o in outcomes)


def test_proofs_main__exits_with_the_code_of_print_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "print_proofs", lambda: 1)
    importlib.import_module("unforgotten.theory.proofs.__main__")  # an import runs nothing
    monkeypatch.delitem(sys.modules, "unforgotten.theory.proofs.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("unforgotten.theory.proofs", run_name="__main__")
    assert ended.value.code == 1

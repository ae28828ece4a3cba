from __future__ import annotations

import re
from typing import get_args

import pytest

from unforgotten.theory.claims import Method, Proof
from unforgotten.theory.proofs.run import load_proofs, run_proof

PROOFS = load_proofs()


@pytest.mark.parametrize("registered", PROOFS.values(), ids=lambda p: p.function)
def test_proofs__hold(registered: Proof) -> None:
    assert run_proof(registered).error == ""


@pytest.mark.parametrize("registered", PROOFS.values(), ids=lambda p: p.function)
def test_proofs__say_what_they_show(registered: Proof) -> None:
    assert re.fullmatch(r"T\d+", registered.claim)
    assert registered.method in get_args(Method)
    assert registered.domain
    assert registered.statement


def test_proofs__can_fail() -> None:
    broken = Proof("T1", "exact", "nothing", f"{__name__}.{fails.__name__}", "false")
    assert run_proof(broken).error == "as it should"


def fails() -> None:
    raise AssertionError("as it should")

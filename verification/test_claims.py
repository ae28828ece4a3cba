from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest

import unforgotten.theory
from unforgotten.theory.claims import CLAIMS, PROOFS, Claim, Kind, claim, load_claims, proof
from unforgotten.theory.proofs.run import load_proofs
from unforgotten.verification.recording.recorded import named_tests, names_of_tests

THEORY_MODULES = sorted(m.name for m in pkgutil.walk_packages(unforgotten.theory.__path__, "unforgotten.theory."))
for module in THEORY_MODULES:
    importlib.import_module(module)


@pytest.mark.parametrize("registered", load_claims().values(), ids=lambda c: c.function)
def test_claims__are_verified(registered: Claim) -> None:
    assert registered.function.rpartition(".")[2] in named_tests()


@pytest.mark.parametrize("id", sorted({c.id for c in load_claims().values()}))
def test_claims__have_a_derivation_or_a_proof(id: str) -> None:
    assert id in {p.claim for p in load_proofs().values()}


def test_claims__are_verified_by_a_rule_that_can_fail() -> None:
    assert "a_claim_without_a_test" not in named_tests()
    assert list(names_of_tests("def test_a__b():\n    pass\ndef helper():\n    pass")) == ["test_a__b"]


@pytest.mark.parametrize("registered", load_claims().values(), ids=lambda c: c.function)
def test_claims__are_complete(registered: Claim) -> None:
    assert re.fullmatch(r"[TC]\d+", registered.id)
    assert registered.kind in get_args(Kind)
    assert len(registered.source) > 5
    assert len(registered.statement) > 20
    assert "\n" not in registered.statement


@pytest.mark.parametrize("registered", load_claims().values(), ids=lambda c: c.function)
def test_claims__name_functions_that_exist(registered: Claim) -> None:
    module, _, name = registered.function.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert registered.function == CLAIMS[registered.function].function


def test_load_claims__misses_none() -> None:
    """In a process that has imported nothing else, the claims that all modules together register."""
    code = "from unforgotten.theory.claims import load_claims; print(*sorted(load_claims()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == sorted(name for name in CLAIMS if name.startswith("unforgotten.theory."))


def test_claims__hold_the_core_of_the_theory() -> None:
    assert {c.id for c in CLAIMS.values()} >= {"T1", "T4", "T6", "T12", "T14", "T16"}


@pytest.mark.parametrize(
    ("decorate", "registry"),
    [
        (claim("T0", kind="exact", source="this test"), CLAIMS),
        (proof("T0", method="exact", domain="this test"), PROOFS),
    ],
    ids=["claim", "proof"],
)
def test_claims__are_registered_once(
    decorate: Callable[[Callable[[], None]], object], registry: dict[str, object]
) -> None:
    def twice() -> None:
        """A statement that is registered twice, for this test alone."""

    decorate(twice)
    try:
        with pytest.raises(ValueError, match="registered once"):
            decorate(twice)
    finally:
        del registry[f"{twice.__module__}.{twice.__qualname__}"]


@pytest.mark.parametrize("banned", ["torch", "transformers", "matplotlib"])
def test_theory__imports_no_heavy_library(banned: str) -> None:
    imports = "; ".join(f"import {name}" for name in THEORY_MODULES)
    code = f"import sys; {imports}; print({banned!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

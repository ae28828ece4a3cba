"""Run the registered proofs."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterator
from typing import NamedTuple

import unforgotten.theory
from unforgotten.theory import proofs
from unforgotten.theory.claims import CLAIMS, PROOFS, Proof


class Outcome(NamedTuple):
    """`error` is empty where the proof holds."""

    proof: Proof
    error: str
    seconds: float


def load_proofs() -> dict[str, Proof]:
    """Import every module that registers a proof."""
    for module in pkgutil.iter_modules(proofs.__path__):
        if not module.name.startswith("_") and module.name != "run":
            importlib.import_module(f"unforgotten.theory.proofs.{module.name}")
    return PROOFS


def load_claims() -> None:
    """Import every module that registers a claim, those outside `unforgotten.theory`'s own imports too."""
    for module in pkgutil.iter_modules(unforgotten.theory.__path__):
        if not module.ispkg:
            importlib.import_module(f"unforgotten.theory.{module.name}")


def run_proof(proof: Proof) -> Outcome:
    """Run one proof."""
    module, _, function = proof.function.rpartition(".")
    start = time.perf_counter()
    try:
        getattr(importlib.import_module(module), function)()
    except AssertionError as error:
        return Outcome(proof, str(error) or "does not hold", time.perf_counter() - start)
    return Outcome(proof, "", time.perf_counter() - start)


def run_proofs() -> Iterator[Outcome]:
    """Run every proof, by statement."""
    for proof in sorted(load_proofs().values(), key=lambda p: (int(p.claim[1:]), p.function)):
        yield run_proof(proof)


def print_proofs() -> int:
    """Print one line a proof, then the statements that have none. Exit code 1 if one fails."""
    failed = 0
    for outcome in run_proofs():
        verdict = f"FAILS: {outcome.error}" if outcome.error else "holds"
        failed += bool(outcome.error)
        p = outcome.proof
        print(
            f"{p.claim:4} {p.method:10} {verdict}: {p.statement} [{p.domain}; {outcome.seconds:.1f} s]"
        )
    load_claims()
    bare = sorted({c.id for c in CLAIMS.values()} - {p.claim for p in PROOFS.values()})
    print(f"only tested: {', '.join(bare) or 'none'}")
    return int(failed > 0)

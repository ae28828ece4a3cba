"""Run the registered proofs, and say what is proved, how, for which domain, and what is only tested."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from unforgotten.theory import proofs
from unforgotten.theory.claims import PROOFS, Claim, Proof, load_claims


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


def run_proof(proof: Proof) -> Outcome:
    """Run one proof."""
    module, _, function = proof.function.rpartition(".")
    start = time.perf_counter()
    try:
        getattr(importlib.import_module(module), function)()
    except AssertionError as error:
        return Outcome(proof, str(error) or "does not hold", time.perf_counter() - start)
    return Outcome(proof, "", time.perf_counter() - start)


def run_proofs(chosen: Iterable[Proof]) -> Iterator[Outcome]:
    """Run proofs, by statement."""
    for proof in sorted(chosen, key=lambda p: (int(p.claim[1:]), p.function)):
        yield run_proof(proof)


def only_tested() -> list[Claim]:
    """Return the claims whose statement has no proof, one a function."""
    proved = {p.claim for p in load_proofs().values()}
    bare = (c for c in load_claims().values() if c.id not in proved)
    return sorted(bare, key=lambda c: (c.id[0], int(c.id[1:]), c.function))


def entry(outcome: Outcome) -> str:
    """Describe one proof in two lines: statement, method, verdict and seconds; what is shown; for which domain."""
    p = outcome.proof
    verdict = f"FAILS: {outcome.error}" if outcome.error else "holds"
    head = f"{p.claim:4} {p.method:10} {outcome.seconds:5.1f} s  {verdict}"
    return f"{head}: {p.statement}\n{'':24}for {p.domain}"


def summary(outcomes: list[Outcome], bare: list[Claim]) -> str:
    """Return a row a statement: how many proofs, by which methods, and whether all hold; then what is only tested."""
    lines = []
    for claim, group in groupby(outcomes, key=lambda o: o.proof.claim):
        found = list(group)
        methods = Counter(o.proof.method for o in found)
        said = ", ".join(f"{n} {method}" for method, n in sorted(methods.items()))
        failed = sum(bool(o.error) for o in found)
        lines.append(f"{claim:4} {'holds' if not failed else f'{failed} FAIL':8} {said}")
    lines += [f"{c.id:4} {'tested':8} {c.kind}: {c.statement}" for c in bare]
    return "\n".join(lines)


def print_proofs() -> int:
    """Print every proof as it ends, then a summary by statement. Exit code 1 if one fails."""
    outcomes = []
    for outcome in run_proofs(load_proofs().values()):
        outcomes.append(outcome)
        print(entry(outcome), flush=True)
    print(f"\n{summary(outcomes, only_tested())}")
    return int(any(o.error for o in outcomes))

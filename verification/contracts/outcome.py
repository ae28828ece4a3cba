"""What was found about a quantizer, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unforgotten.verification.contracts.registry import CONTRACTS, Counterexample

Outcome = Literal["holds", "fails", "not claimed", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """What was found about one contract.

    Attributes:
        contract: its name.
        outcome: "holds" for every example; "not judged" after a failure of a basic contract.
        examples: weights tried.
        seed: seed that repeats the search.
        counterexample: weights that break the contract, shrunk.
        seconds: time that the search took.
    """

    contract: str
    outcome: Outcome
    examples: int = 0
    seed: int | None = None
    counterexample: Counterexample | None = None
    seconds: float = 0.0


def as_object(v: Verdict) -> dict[str, Any]:
    """Return a verdict for JSON."""
    contract = CONTRACTS[v.contract]
    row: dict[str, Any] = {"contract": v.contract, "statement": contract.statement, "outcome": v.outcome}
    if v.outcome == "not claimed":
        return row | {"needs": contract.needs}
    row |= {"examples": v.examples, "seed": v.seed, "seconds": round(v.seconds, 3)}
    if v.counterexample is None:
        return row
    found = v.counterexample
    return row | {
        "counterexample": {
            "words": f"contract {v.contract!r} fails: {found.words}",
            "at": found.at,
            "weights": [[_finite(x) for x in line] for line in found.weights],
        }
    }


def _finite(x: Any) -> float:
    assert math.isfinite(x)
    return float(x)


def lines(result: Mapping[str, Any]) -> list[str]:
    """Say the result in plain words, line by line."""
    text = [f"{result['quantizer']}: profile {result['profile']}, seed {result['seed']}"]
    rows = [row for row in result["contracts"] if row["outcome"] != "not claimed"]
    for row in rows:
        count = f" ({row['examples']} examples)" if row["outcome"] == "holds" else ""
        text.append(f"{row['outcome']:>10}  {row['contract']}{count}")
        if found := row.get("counterexample"):
            text += [f"{'':12}{found['words']}", f"{'':12}in the weights {_sparse(found['weights'])}"]
    if others := [row["contract"] for row in result["contracts"] if row not in rows]:
        text.append(f"not claimed, so not tested: {'; '.join(others)}")
    failed = sum(row["outcome"] == "fails" for row in rows)
    judged = failed + sum(row["outcome"] == "holds" for row in rows)
    return [*text, f"{failed} of {judged} contracts fail" if failed else f"all {judged} contracts hold"]


def _sparse(weights: list[list[float]]) -> str:
    """Print every weight where they are few; otherwise those that are not 0, with their places."""
    w = np.asarray(weights)
    if w.size <= 8:
        return str([[float(f"{x:.9g}") for x in line] for line in weights])
    others = ", ".join(f"[{i}, {j}] = {w[i, j]:.9g}" for i, j in zip(*np.nonzero(w), strict=True))
    return f"{w.shape[0]} x {w.shape[1]}, all 0" + (f" but {others}" if others else "")

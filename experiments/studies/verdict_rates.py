"""How often the rule errs on simulated items whose rho is known: `python -m unforgotten.experiments.studies.verdict_rates FOLDER`.

Items are like M1's of the tiny runs: the target near 100, the unlearned model between 5 and 35, noise of 8 points where
quantization changes an answer. What comes back is all or nothing of an item, a beta-distributed part, or the same part
of each. Writes FOLDER/rates.jsonl: the share of each verdict by number of items, law and rho of each format.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.verdict.evidence import MATERIAL, SURELY, Items, recovery_row
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg
from unforgotten.audit.verdict.rule import Word, judge_behaviour
from unforgotten.records.files import write_text

Rng = np.random.Generator
NOISE = 8.0
TRIALS = 200
COUNTS = (8, 16)
CASES = {
    "at MATERIAL, one format": (MATERIAL,),
    "at MATERIAL in one of five": (MATERIAL, 0.0, 0.0, 0.0, 0.0),
    "at SURELY, one format": (SURELY,),
    "at SURELY in five": (SURELY,) * 5,
    "nothing back in five": (0.0,) * 5,
    "four fifths back in one of five": (0.8, 0.0, 0.0, 0.0, 0.0),
}


def _beta(rng: Rng, rho: float, n: int) -> NDArray[Any]:
    return rng.beta(2 * rho, 2 * (1 - rho), n) if rho else np.zeros(n)


LAWS: Mapping[str, Callable[[Rng, float, int], NDArray[Any]]] = {
    "all or nothing": lambda rng, rho, n: (rng.random(n) < rho).astype(np.float64),
    "beta": _beta,
    "same part": lambda rng, rho, n: np.full(n, rho),
}


def simulated_leg(rng: Rng, law: str, rhos: Sequence[float], n: int) -> BehaviourLeg:
    """Simulate a behaviour leg of n items with one metric; E[recovered part] = rho per format, items independent.

    Noise is symmetric and not cut off at 0 or 100, so that it does not move rho.
    """
    before = np.full(n, 100.0)
    after, kept = rng.uniform(5.0, 35.0, n), 100.0 - rng.exponential(2.0, n)
    rows = []
    for i, rho in enumerate(rhos):
        back = LAWS[law](rng, rho, n) * (kept - after)
        items = Items(before, after, kept, after + back + NOISE * rng.standard_normal(n))
        row = recovery_row("M1", items)
        rows.append(BehaviourFormat(format=f"f{i}", metrics={}, recoveries=[row], effects=[]))
    return BehaviourLeg(benchmark="simulated", metrics={}, formats=rows, leaks=[], notes=[])


def count_words(law: str, rhos: Sequence[float], n: int, trials: int, seed: int) -> Counter[Word]:
    """Verdicts of `trials` legs."""
    rng = np.random.default_rng([seed, n, len(law), len(rhos)])
    return Counter(judge_behaviour(simulated_leg(rng, law, rhos, n)).word for _ in range(trials))


def rates(trials: int = TRIALS) -> Iterator[dict[str, Any]]:
    """One row a number of items, law and case."""
    for n in COUNTS:
        for law in LAWS:
            for case, rhos in CASES.items():
                words = count_words(law, rhos, n, trials, seed=0)
                yield {
                    "items": n,
                    "law": law,
                    "case": case,
                    "rhos": rhos,
                    "trials": trials,
                    **{word: words[word] / trials for word in ("survives", "undone", "undecided")},
                }


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) / "rates.jsonl", "".join(json.dumps(row) + "\n" for row in rates()))

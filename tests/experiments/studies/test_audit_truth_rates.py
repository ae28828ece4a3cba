"""The simulated items on which the error rates of the verdict are counted, and the committed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unforgotten.audit.verdict.rule import Word
from unforgotten.experiments.studies.audit_truth_rates import CASES, COUNTS, LAWS, count_words, simulated_leg

ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "reports/published/audit-truth/rates.jsonl").read_text().splitlines()
]
WORDS: tuple[Word, ...] = ("survives", "undone", "undecided")


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rho", [0.0, 1 / 3, 0.8])
def test_simulated_leg__has_the_rho_that_it_says(law: str, rho: float) -> None:
    """Of many items the measured recovery is rho but for chance: five standard errors, noise of 8 points of 80 included."""
    count = 20_000
    leg = simulated_leg(np.random.default_rng(0), law, [rho], count)
    [row] = leg["formats"][0]["recoveries"]
    assert row["rho"] is not None
    assert abs(row["rho"] - rho) < 5 * (0.5 + 0.1) / np.sqrt(count)


def test_rows__are_all_cases_once() -> None:
    asked = {(n, law, case) for n in COUNTS for law in LAWS for case in CASES}
    assert len(ROWS) == len(asked)
    assert {(row["items"], row["law"], row["case"]) for row in ROWS} == asked
    for row in ROWS:
        assert row["rhos"] == list(CASES[row["case"]])
        assert sum(row[word] for word in WORDS) == pytest.approx(1)


@pytest.mark.parametrize("row", ROWS[:1] + ROWS[-1:], ids=lambda row: f"{row['law']}, {row['case']}")
def test_rows__are_what_the_rule_says_today(row: dict[str, Any]) -> None:
    found = count_words(row["law"], row["rhos"], row["items"], row["trials"], seed=0)
    assert {word: found[word] / row["trials"] for word in WORDS} == {w: row[w] for w in WORDS}

"""The published text on the verdict's accuracy is what its rows say; the rows can be made again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from unforgotten.records.files import read_json_lines

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
WORDS = ("survives", "undone")
READING_DIGITS = 1e-6  # readings are kept to seven digits; rho is a quotient of two differences of them
TRUTH = PUBLISHED / "audit-truth"
SHEETS = ("tiny-sheets-seed0", "tiny-sheets-seed1-fp32", "tiny-sheets-seed2-fp32")
RUNS = [PUBLISHED / name for name in (*(f"tiny-seed{seed}" for seed in range(5)), *SHEETS)]


def test_confident_errors_are_none_on_clear_truths() -> None:
    rows = [r for r in read_json_lines(TRUTH / "rows.jsonl") if r["clear"]]
    assert {r["truth"] for r in rows} == {"survives", "undone"}
    assert len({(r["run"], r["method"], r["storage"], r.get("format")) for r in rows}) >= 40
    assert all(r["verdict"] in ("undecided", r["truth"]) for r in rows)


def test_the_text_states_the_numbers_of_the_rows() -> None:
    rows = read_json_lines(TRUTH / "rows.jsonl")
    sets = {name: [r for r in rows if r["set"] == name] for name in ("whole", "output", "halves", "constructed")}
    whole, made, halves = sets["whole"], sets["constructed"], sets["halves"]
    decided = [r for r in whole if r["verdict"] != "undecided"]
    open_ = {word: [r for r in whole if (r["verdict"], r["truth"]) == ("undecided", word)] for word in WORDS}
    text = " ".join((TRUTH / "README.md").read_text().split())
    right = sum(r["verdict"] == r["truth"] for r in decided)
    assert f"of {len(whole)} pairs, {len(decided)} get a confident verdict, all {right} right" in text
    lost, alive = (open_[word] for word in ("undone", "survives"))
    rhos = [r["rho"] for r in lost]
    assert f"Of the other {len(lost) + len(alive)}, {len(lost)} have a truth between {min(rhos):.2f}" in text
    assert f"and {max(rhos):.2f} with an interval that holds 1/3" in text
    assert f"The other {len(alive)} survive" in text
    assert not any(r["clear"] for r in lost)
    ends = [int(r["reasons"][1].split("]")[0].split()[-1]) for r in alive]
    assert f"in one format is {min(ends)} to {max(ends)} %" in text
    said = Counter((r["truth"], r["verdict"]) for r in sets["output"])
    assert (
        f'"undone" of the same {said["undone", "undone"]} pairs and "survives" of {said["survives", "survives"]}'
        in text
    )
    assert all(
        (r["verdict"] == "undone") == (s["verdict"] == "undone") for r, s in zip(whole, sets["output"], strict=True)
    )
    words = [r["verdict"] for r in made]
    assert f"Of {len(made)} constructed pairs, {len(made) - words.count('undecided')} are right" in text
    undecided = sum(r["verdict"] == "undecided" for r in halves)
    assert (
        f"undecided for {undecided} of {len(halves)}, and the truth of the other half is at the border for all" in text
    )
    assert not any(r["clear"] for r in halves)
    for name, group in sets.items():
        stay = Counter(r["verdict"] for r in group if r["verdict"] == r["truth"])
        wrong = sum(r["verdict"] not in ("undecided", r["truth"]) for r in group)
        (line,) = (line for line in (TRUTH / "README.md").read_text().splitlines() if line.startswith(f"| {name} |"))
        assert line.endswith(f"| {stay['survives']}, {wrong} and {stay['undone']} |")


@pytest.mark.nightly
def test_the_rows_are_made_again_from_items_and_readings() -> None:
    """All but the constructed ones, which need the models."""
    pytest.importorskip("torch")
    from unforgotten.experiments.studies.audit_truth import read_readings, truth_rows

    kept = [
        r
        for r in read_json_lines(TRUTH / "rows.jsonl")
        if r["set"] != "constructed" and r["run"] in {x.name for x in RUNS}
    ]
    made = truth_rows(RUNS, read_readings(TRUTH / "readings.jsonl"))
    for ours, theirs in zip(json.loads(json.dumps(list(made))), kept, strict=True):
        for key in ("set", "run", "method", "storage", "truth", "clear", "where", "verdict"):
            assert ours[key] == theirs[key]
        assert ours["rho"] == pytest.approx(theirs["rho"], rel=READING_DIGITS)

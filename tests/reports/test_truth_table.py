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


def test_the_text_states_what_was_seen_of_held_out_pairs() -> None:
    text = " ".join((TRUTH / "README.md").read_text().split())
    rows = [r for r in read_json_lines(TRUTH / "rows.jsonl") if r["truth"]]
    single, together = ([r for r in rows if r["set"] == name] for name in ("one format", "held out"))
    clear, border = ([r for r in single if r["clear"] is clear] for clear in (True, False))
    right = {word: Counter(r["verdict"] == word for r in clear if r["truth"] == word) for word in WORDS}
    counts = {word: f"{found[True]} of {found.total()} clear" for word, found in right.items()}
    assert f'{counts["undone"]} undone pairs are "undone" and {counts["survives"]} surviving ones "survives"' in text
    assert all(r["verdict"] in ("undecided", r["truth"]) for r in clear)
    told = [r for r in border if r["verdict"] != "undecided"]
    wrong = [r for r in told if r["verdict"] != r["truth"]]
    assert f"of {len(border)} pairs with a truth at the border {len(told)} have a confident verdict" in text
    assert f"and {len(wrong)} contradicts it" in text
    for r in wrong:
        assert f"{r['method']} of {r['run']} in {r['storage']} is called" in text
    found = {word: Counter(r["verdict"] == word for r in together if r["truth"] == word) for word in WORDS}
    says = {word: f'"{word}" of {count[True]} of {count.total()}' for word, count in found.items()}
    assert f"at once says {says['undone']}, and {says['survives']} alone" in text


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


def test_rows_of_a_held_out_run_are_made_again_and_need_its_readings() -> None:
    pytest.importorskip("torch")
    from unforgotten.experiments.studies.audit_truth import held_out, published_pairs, read_readings

    run = PUBLISHED / "held-out" / "gpt-neox-seed5"
    kept = [r for r in read_json_lines(TRUTH / "rows.jsonl") if r["run"] == run.name and r["method"].startswith("NPO")]
    readings = read_readings(TRUTH / "readings.jsonl")
    pairs = [pair for pair in published_pairs(run) if pair.method.startswith("NPO")]
    made = [row for pair in pairs for row in held_out(pair, readings)]
    for ours, theirs in zip(json.loads(json.dumps(made)), kept, strict=True):
        for key in ("set", "method", "storage", "architecture", "looked_at", "truth", "clear", "where", "verdict"):
            assert ours[key] == theirs[key]
        assert ours.get("format") == theirs.get("format")
        assert ours["rho"] == pytest.approx(theirs["rho"], rel=READING_DIGITS)
    with pytest.raises(ValueError, match=r"gpt-neox-seed5: target must have readings"):
        next(held_out(pairs[0], {}))

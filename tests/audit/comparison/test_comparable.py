"""What must be the same in audits that are ranked together: the target and the items, by their digest where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from unforgotten.audit.comparison.comparable import differences, doubts
from unforgotten.audit.comparison.compare import Comparison, compare
from unforgotten.audit.comparison.read import Compared
from unforgotten.audit.judged.judge import judge, write_judged
from unforgotten.audit.verdict.asked import items_sha256
from unforgotten.audit.verdict.legs import BehaviourLeg, Mean, OutputLeg

END = "no winner is named among them."
OTHER_ITEMS = f"Not comparable: different items: a | b; {END}"
SIDES: Mapping[str, float] = {"target": 90.0, "unlearned": 0.0, "q-target": 90.0, "q-unlearned": 3.0}
Row = dict[str, Any]


def audit(
    name: str, digest: str | None, *, m4: float = 80.0, place: str = "bench", texts: str | None = None
) -> Compared:
    behaviour = BehaviourLeg(
        benchmark=place, metrics={"target": {"M4": Mean(value=m4, stderr=0.1, n=20)}}, formats=[], leaks=[], notes=[]
    )
    output = OutputLeg(texts="t", count=1, tokens=1, cut=0, losses={}, distances=[], formats=[], notes=[])
    if digest is not None:
        behaviour["items_sha256"] = digest
    if texts:
        output["items_sha256"] = texts
    weights: list[Any] = [{"format": "int4-g64"}]
    written = None if texts is None else output
    return Compared(name, Path(name), "0" * 64, weights, written, behaviour, "undecided")


def test_other_items_under_one_name_are_not_comparable() -> None:
    assert differences([audit("a", "1"), audit("b", "2")]) == [OTHER_ITEMS]
    assert doubts([audit("a", "1"), audit("b", "2")]) == []


def test_the_same_items_in_another_folder_are_comparable() -> None:
    pair = [audit("a", "1"), audit("b", "1", place="elsewhere/bench")]
    assert differences(pair) == doubts(pair) == []


def test_other_texts_are_not_comparable() -> None:
    pair = [audit("a", "1", texts="1"), audit("b", "1", texts="2")]
    assert differences(pair) == [f"Not comparable: different texts: a | b; {END}"]


@pytest.mark.parametrize(("first", "names"), [("1", "b"), (None, "a, b")])
def test_audits_without_a_digest_are_compared_as_before_and_a_doubt_is_said(first: str | None, names: str) -> None:
    pair = [audit("a", first), audit("b", None)]
    assert differences(pair) == []
    (told,) = doubts(pair)
    assert told == (
        f"It cannot be told whether a, b were measured on the same items: an earlier version wrote {names}, without a "
        "digest of them."
    )
    moved = [audit("a", first), audit("b", None, place="elsewhere/bench")]
    assert differences(moved) == [f"Not comparable: different benchmarks: a | b; {END}"]
    assert doubts(pair[1:]) == doubts(moved) == []


def test_texts_without_a_digest_are_in_doubt() -> None:
    (told,) = doubts([audit("a", "1", texts="1"), audit("b", "1", texts="")])
    assert told.startswith(
        "It cannot be told whether a, b were measured on the same texts: an earlier version wrote b,"
    )


def test_one_target_of_two_values_was_measured_otherwise() -> None:
    """On the same items, by other settings; where the items may be others, nothing is comparable."""
    pair = [audit("a", "1", m4=100.0), audit("b", "1", m4=85.0)]
    assert differences(pair) == []
    assert doubts(pair) == [
        "One target has M4 100 in a, 85 in b, on the same items: settings of the measurement differ."
    ]
    assert doubts([audit("a", "1", m4=85.01), audit("b", "1", m4=85.02)]) == []
    assert differences([audit("a", None, m4=100.0), audit("b", None, m4=85.0)]) == [
        f"Not comparable: one target has M4 100 in a, 85 in b: items or settings differ; {END}"
    ]


def test_the_digest_is_of_the_items_and_their_order() -> None:
    asked = {"questions": ["who?", "when?"], "answers": ["she", "then"]}
    same = {"answers": ["she", "then"], "questions": ["who?", "when?"]}
    swapped = {**asked, "answers": ["then", "she"]}
    assert items_sha256(asked) == items_sha256(same) != items_sha256(swapped)


def evaluated(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Row], Row], lost: float) -> Path:
    """Judge 40 items of M1 and of M4 from within a folder, as a harness lays them out."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    for side, known in SIDES.items():
        kept = 80.0 - lost if side == "q-unlearned" else 80.0
        rows = [
            {"id": i, "metric": metric, "value": value + i % 3 * (value > 0)}
            for metric, value in (("M1", known), ("M4", kept))
            for i in range(40)
        ]
        Path(f"{side}.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    target, unlearned, *both = (Path(f"{side}.jsonl") for side in SIDES)
    write_judged(judge(target, unlearned, {"Q4": (both[0], both[1])}), folder / "judged.json")
    return folder


def two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Callable[[Row], Row], other: Callable[[Row], Row]
) -> Comparison:
    return compare(
        [evaluated(tmp_path / "a", monkeypatch, first, 4.0), evaluated(tmp_path / "b", monkeypatch, other, 15.0)]
    )


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"id": "x"}, {"id": "y"}),
        ({"prompt": "x", "gt": "z"}, {"prompt": "y", "gt": "z"}),
        ({"input": "x", "ground_truth": "y"}, {"input": "x", "ground_truth": "z"}),
    ],
)
def test_evaluations_on_other_items_have_no_winner(
    first: dict[str, str], other: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are called the same, as are the numbers of items, and the target has the same values."""

    def marked(by: Mapping[str, str]) -> Callable[[Row], Row]:
        return lambda row: {**row, **{key: f"{text}{row['id']}" for key, text in by.items()}}

    found = two(tmp_path, monkeypatch, marked(first), marked(other))
    assert found["warnings"] == [OTHER_ITEMS]
    assert found["rankings"][0]["winner"] is None
    digests = [one["items_sha256"] for one in found["audits"]]
    assert all(digests)
    assert digests[0] != digests[1]


def test_evaluations_on_the_same_items_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = two(tmp_path, monkeypatch, lambda row: row, lambda row: row)
    assert found["warnings"] == []
    assert found["rankings"][0]["winner"] == {"audit": "a", "format": "Q4"}


def test_evaluations_of_targets_with_one_name_and_other_values_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that are mere numbers say nothing: the target itself tells the items apart, or two targets."""
    found = two(tmp_path, monkeypatch, lambda row: row, lambda row: {**row, "value": row["value"] * 0.9})
    assert found["warnings"] == [
        f"Not comparable: one target has M1 91 in a, 81.9 in b: items or settings differ; {END}"
    ]
    assert found["rankings"][0]["winner"] is None


def test_an_evaluation_of_an_earlier_version_is_compared_with_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(tmp_path, monkeypatch, lambda row: row, lambda row: row)
    for name in "ab":
        path = tmp_path / name / "judged.json"
        old = json.loads(path.read_text())
        del old["behaviour"]["items_sha256"]
        path.write_text(json.dumps(old))
    by = {word: compare([tmp_path / name for name in "ab"], word) for word in ("all", "audit", "format")}
    for word in ("all", "format"):
        (told,) = by[word]["warnings"]
        assert told.startswith("It cannot be told whether a, b were measured on the same items")
        assert by[word]["rankings"][0]["winner"] == {"audit": "a", "format": "Q4"}
    assert by["audit"]["warnings"] == []

"""Audits beside each other: the score by hand, who wins and who cannot, what is not comparable, and every way to show it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unforgotten.audit.comparison.compare import Comparison, compare
from unforgotten.audit.comparison.row import NO_LOSS, Range, score_of
from unforgotten.audit.comparison.show import HEADER, print_comparison, to_csv, to_html, to_markdown, write_comparison
from unforgotten.audit.judged.judge import judge, write_judged
from unforgotten.audit.outputs.result import SCHEMA
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Mean, RecoveryRow

TARGET_M4 = 80.0
STRANGE = "a|b<script>x</script>"
ROUNDINGS = 1e-12  # of some sums, products and quotients in float64


def mean(value: float, stderr: float | None = 0.4) -> Mean:
    return Mean(value=value, stderr=stderr, n=20)


def recovery(metric: str, rho: float | None, *, half: float = 0.05, unlearned: float = 10.0) -> RecoveryRow:
    return RecoveryRow(
        metric=metric,
        n=20,
        target=100.0,
        unlearned=unlearned,
        quantized_target=100.0,
        quantized_unlearned=unlearned + (100.0 - unlearned) * (rho or 0.0),
        removed=True,
        rho=rho,
        low=None if rho is None else rho - half,
        high=None if rho is None else rho + half,
        change=[0.0, 0.0],
        p_undone=1e-6 if rho is not None and rho > 0.5 else 1.0,
        p_survives=1e-6 if rho is not None and rho < 0.1 else 1.0,
        effective=15.0,
    )


def leg(formats: Mapping[str, tuple[Sequence[RecoveryRow], float]], m4: float, benchmark: str = "b") -> BehaviourLeg:
    """A leg by format: its recoveries, and M4 of the quantized unlearned model."""
    return BehaviourLeg(
        benchmark=benchmark,
        metrics={"target": {"M4": mean(TARGET_M4)}, "unlearned": {"M4": mean(m4)}},
        formats=[
            BehaviourFormat(
                format=name,
                metrics={"Q(target)": {"M4": mean(TARGET_M4)}, "Q(unlearned)": {"M4": mean(after)}},
                recoveries=list(rows),
                effects=[],
            )
            for name, (rows, after) in formats.items()
        ],
        leaks=[],
        notes=[],
    )


def audit(folder: Path, behaviour: BehaviourLeg | None, *, target: str = "0" * 64, name: str = "int4-g64") -> Path:
    """An `audit.json` with what a comparison reads."""
    weights = {"format": name, "grid": "adaptive", "gain": 0.5, "gain_stderr": 0.01, "expected_flips": 1.0}
    result = {
        "schema": SCHEMA,
        "target": {"sha256": target},
        "formats": [weights, {**weights, "grid": "fixed", "gain": 9.0}],
        "output": None,
        "behaviour": behaviour,
        "verdict": {"overall": "undecided"},
    }
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(result))
    return folder


def one(
    folder: Path, rho: float | None, m4: float, *, half: float = 0.05, unlearned: float = 10.0, **more: Any
) -> Path:
    rows = [recovery("M1", rho, half=half, unlearned=unlearned)]
    return audit(folder, leg({"int4-g64": (rows, m4)}, m4 + 1, more.pop("benchmark", "b")), **more)


def rows(found: Comparison) -> dict[str, Any]:
    return {row["audit"]: row for ranking in found["rankings"] for row in ranking["rows"]}


def text(found: Comparison, width: int = 200) -> str:
    stream = io.StringIO()
    print_comparison(found, Console(file=stream, width=width, color_system=None, force_terminal=True))
    return stream.getvalue()


def test_the_score_is_what_is_kept_over_the_points_that_are_lost(tmp_path: Path) -> None:
    """By hand: rho 0.2 ± 0.05 and M4 from 80 to 72, 10 points of the target's; 2 standard errors are 1.3454 points."""
    row = rows(compare([one(tmp_path / "npo", 0.2, 72.0)]))["npo"]
    margin = 2 * 100 * (0.4**2 + (0.9 * 0.4) ** 2) ** 0.5 / 80
    assert row["score"]["value"] == pytest.approx(0.8 / 10, rel=ROUNDINGS)
    assert row["score"]["low"] == pytest.approx(0.75 / (10 + margin), rel=ROUNDINGS)
    assert row["score"]["high"] == pytest.approx(0.85 / (10 - margin), rel=ROUNDINGS)
    assert row["kept"] == pytest.approx({"value": 0.8, "low": 0.75, "high": 0.85}, rel=ROUNDINGS)
    assert (row["gain"], row["metric"], row["forgotten"]) == (0.5, "M1", pytest.approx(0.9, rel=ROUNDINGS))
    assert (row["retained_unlearned"], row["retained_quantized"]) == (73 / 80, 0.9)


def test_the_metric_that_comes_back_most_counts(tmp_path: Path) -> None:
    behaviour = leg(
        {"int4-g64": ([recovery("M1", 0.1), recovery("M2", 0.6), recovery("forget_loss", 0.9)], 70.0)}, 70.0
    )
    row = rows(compare([audit(tmp_path / "npo", behaviour)]))["npo"]
    assert (row["metric"], row["recovered"]["value"]) == ("M2", 0.6)


@pytest.mark.parametrize(
    ("rho", "m4", "unlearned", "why"),
    [
        (0.1, 80.0, 10.0, NO_LOSS),
        (0.1, 81.0, 10.0, NO_LOSS),
        (None, 70.0, 10.0, "the recovered share of M1 is undefined"),
        (0.0, 79.0, 90.0, "too little of M1 and M2 was forgotten"),
        (0.0, 5.0, 10.0, "the model lost what it should keep"),
    ],
)
def test_rows_without_a_score_say_why_and_never_win(
    rho: float | None, m4: float, unlearned: float, why: str, tmp_path: Path
) -> None:
    paths = [one(tmp_path / "odd", rho, m4, unlearned=unlearned), one(tmp_path / "npo", 0.5, 60.0)]
    found = compare(paths)
    assert rows(found)["odd"]["score"] is None
    assert rows(found)["odd"]["why"] == why
    assert found["rankings"][0]["winner"] is None
    assert [row["audit"] for row in found["rankings"][0]["rows"]] == ["npo", "odd"]
    assert f"No score: odd in int4-g64: {why}." in text(found)


def test_a_row_that_lost_nothing_stands_in_the_way_of_a_winner(tmp_path: Path) -> None:
    paths = [one(tmp_path / name, *found) for name, found in (("a", (0.0, 76.0)), ("b", (0.5, 50.0)))]
    assert compare(paths)["rankings"][0]["winner"] == {"audit": "a", "format": "int4-g64"}
    found = compare([*paths, one(tmp_path / "free", 0.1, 80.0)])["rankings"][0]
    assert found["winner"] is None
    assert found["sentence"] == (
        "No winner by score: free in int4-g64 kept forgetting and lost no M4, which no score can rank."
    )


def test_a_broken_model_stands_in_the_way_of_none(tmp_path: Path) -> None:
    paths = [
        one(tmp_path / name, *found) for name, found in (("a", (0.0, 76.0)), ("b", (0.5, 50.0)), ("c", (0.0, 3.0)))
    ]
    found = compare(paths)
    assert found["rankings"][0]["winner"] == {"audit": "a", "format": "int4-g64"}
    assert rows(found)["c"]["broken"]
    assert "retain lost" in text(found)


def test_rows_whose_intervals_overlap_cannot_be_told_apart(tmp_path: Path) -> None:
    found = compare([one(tmp_path / "a", 0.1, 72.0), one(tmp_path / "b", 0.12, 72.0)])["rankings"][0]
    assert found["winner"] is None
    assert found["sentence"] == (
        "No winner: a in int4-g64, b in int4-g64 cannot be told apart, for their intervals overlap."
    )


def test_a_winner_beats_all_others_and_not_the_next_alone(tmp_path: Path) -> None:
    """The third has the smallest estimate, and an interval that reaches above all: its loss may be 0."""
    sides = [one(tmp_path / "a", 0.0, 74.0, half=0.01), one(tmp_path / "b", 0.5, 70.0, half=0.01)]
    assert compare(sides)["rankings"][0]["winner"] == {"audit": "a", "format": "int4-g64"}
    wide = one(tmp_path / "c", 0.98, 79.5, half=0.01)
    found = compare([*sides, wide])
    assert [row["audit"] for row in found["rankings"][0]["rows"]] == ["a", "b", "c"]
    assert rows(found)["c"]["score"]["high"] is None
    assert found["rankings"][0]["winner"] is None


def test_the_score_counts_shares_within_none_and_all() -> None:
    lost = Range(value=10.0, low=8.0, high=12.0)
    more, _ = score_of(Range(value=1.3, low=1.1, high=1.5), lost, broken=False, doubt=None)
    less, _ = score_of(Range(value=-0.3, low=-0.5, high=-0.1), lost, broken=False, doubt=None)
    assert more == {"value": 0.1, "low": 1 / 12, "high": 1 / 8}
    assert less == {"value": 0.0, "low": 0.0, "high": 0.0}
    unknown, _ = score_of(
        Range(value=1.0, low=None, high=None), Range(value=10.0, low=None, high=None), broken=False, doubt=None
    )
    assert unknown == {"value": 0.1, "low": 0.0, "high": None}


def test_by_format_and_by_audit_make_rankings_of_their_own(tmp_path: Path) -> None:
    formats = {"int4-g64": ([recovery("M1", 0.6)], 60.0), "int8-row": ([recovery("M1", 0.0)], 76.0)}
    paths = [audit(tmp_path / name, leg(formats, 76.0)) for name in ("npo", "ga")]
    by = {word: compare(paths, word)["rankings"] for word in ("all", "audit", "format")}
    assert [ranking["of"] for ranking in by["all"]] == [None]
    assert [ranking["of"] for ranking in by["audit"]] == ["npo", "ga"]
    assert [ranking["of"] for ranking in by["format"]] == ["int4-g64", "int8-row"]
    assert by["audit"][0]["winner"] == {"audit": "npo", "format": "int8-row"}
    assert {row["format"] for row in by["format"][0]["rows"]} == {"int4-g64"}


@pytest.mark.parametrize(("more", "what"), [({"target": "1" * 64}, "targets"), ({"benchmark": "other"}, "benchmarks")])
def test_what_is_not_comparable_is_said_first_and_has_no_winner(
    more: dict[str, Any], what: str, tmp_path: Path
) -> None:
    paths = [one(tmp_path / "a", 0.0, 76.0), one(tmp_path / "b", 0.5, 50.0, **more)]
    found = compare(paths)
    first = f"Not comparable: different {what}: a | b; no winner is named among them."
    assert found["warnings"] == [first]
    assert found["rankings"][0]["winner"] is None
    assert text(found).startswith(first)


def test_different_numbers_of_items_are_not_comparable(tmp_path: Path) -> None:
    sampled = leg({"int4-g64": ([recovery("M1", 0.0)], 76.0)}, 76.0)
    sampled["metrics"]["target"]["M4"]["n"] = 5
    found = compare([one(tmp_path / "a", 0.0, 76.0), audit(tmp_path / "b", sampled)])
    assert found["warnings"] == ["Not comparable: different numbers of items: a | b; no winner is named among them."]


def test_weights_alone_have_their_gain_and_no_score(tmp_path: Path) -> None:
    row = rows(compare([audit(tmp_path / "w", None)]))["w"]
    assert (row["gain"], row["score"], row["recovered"]) == (0.5, None, None)
    assert row["why"] == "no benchmark was measured in it"


def test_a_judged_evaluation_is_compared(tmp_path: Path) -> None:
    sides = {"target": (100, 60), "unlearned": (0, 57), "q-target": (100, 60), "q-unlearned": (10, 54)}
    for side, (known, kept) in sides.items():
        items = [{"id": i, "metric": "M1", "value": known * (1 - i % 3 / 10)} for i in range(40)]
        items += [{"id": i, "metric": "M4", "value": kept + i % 2} for i in range(40)]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    files = {side: tmp_path / f"{side}.jsonl" for side in sides}
    pair = files["q-target"], files["q-unlearned"]
    write_judged(judge(files["target"], files["unlearned"], {"Q4_K_M": pair}), tmp_path / "npo/judged.json")
    row = rows(compare([tmp_path / "npo"]))["npo"]
    assert (row["format"], row["gain"], row["word"]) == ("Q4_K_M", None, "survives")
    assert row["recovered"]["value"] == pytest.approx(0.1, rel=ROUNDINGS)
    assert row["score"]["value"] == pytest.approx(0.9 / (100 * 6 / 60.5), rel=ROUNDINGS)


def test_audits_of_one_name_are_told_apart_by_path(tmp_path: Path) -> None:
    paths = [one(tmp_path / side / "out", 0.1, 70.0) for side in ("a", "b")]
    assert set(rows(compare(paths))) == {str(path) for path in paths}


def test_every_file_is_written_and_strange_names_are_escaped(tmp_path: Path) -> None:
    behaviour = leg({STRANGE: ([recovery("M1", 0.2)], 72.0)}, 73.0)
    found = compare([audit(tmp_path / "npo", behaviour, name=STRANGE)])
    for ending, render in ((".html", to_html), (".csv", to_csv), (".md", to_markdown)):
        write_comparison(found, tmp_path / f"c{ending}")
        assert (tmp_path / f"c{ending}").read_text("utf-8") == render(found)
    assert "<script" not in to_html(found)
    assert "a|b&lt;script&gt;" in to_html(found)
    lines = [line for line in to_markdown(found).splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [len(HEADER) + 1] * 3
    (row,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert row["format"] == STRANGE
    assert float(row["score"]) == found["rankings"][0]["rows"][0]["score"]["value"]  # type: ignore[index]
    assert row["score_high"]
    assert row["winner"] == "False"


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_shows_every_row_whole(width: int, tmp_path: Path) -> None:
    told = " ".join(text(compare([one(tmp_path / "npo", 0.2, 72.0)]), width).split())
    for part in ("npo", "int4-g64", "0.50 ± ", "M1 90 %", "80 % [75, 85]", "91 → 90 %", "8 % ["):
        assert part in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"must hold audit\.json or judged\.json, got a folder without"),
        ("{", "must be what unforgotten audit or judge wrote, .* got None"),
        ('{"schema": "other/1"}', "got 'other/1'"),
        (f'{{"schema": "{SCHEMA}"}}', "must hold all of unforgotten.audit/1, got none of 'formats'"),
    ],
)
def test_what_is_no_audit_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    if content is not None:
        (tmp_path / "x/audit.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        compare([tmp_path / "x"])


def test_one_audit_twice_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "npo", 0.2, 72.0)
    with pytest.raises(ValueError, match="AUDIT must name each audit once"):
        compare([path, path / "audit.json"])


def test_the_command_prints_the_object_and_writes_the_file(
    tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(one(tmp_path / "a", 0.0, 76.0)), str(one(tmp_path / "b", 0.5, 50.0, target="1" * 64))]
    assert exit_code("compare", *paths, "--by", "format", "--json", "--out", str(tmp_path / "c.md")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == compare([Path(path) for path in paths], "format")
    assert err == "Not comparable: different targets: a | b; no winner is named among them.\n"
    assert (tmp_path / "c.md").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--by", "method"], "unforgotten: --by must be one of all, audit, format, got 'method'\n"),
        (["--out", "c.pdf"], "unforgotten: --out must end with one of .html, .csv, .md, got 'c.pdf'\n"),
    ],
)
def test_bad_options_end_with_one_line(
    arguments: list[str], line: str, tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("compare", str(one(tmp_path / "a", 0.0, 76.0)), *arguments) == 2
    assert capsys.readouterr().err == line

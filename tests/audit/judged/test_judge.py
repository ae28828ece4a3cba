"""Evaluations made elsewhere: each layout is read, items match by id, and the verdict is the audit's on the same items."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from unforgotten.audit.judged.judge import judge, judged_gate, read_judged, write_judged
from unforgotten.audit.judged.summary import print_judged
from unforgotten.audit.verdict.evidence import Items, leak, recovery_row
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, RecoveryRow, deciding_of, retained_of
from unforgotten.audit.verdict.rule import decide
from unforgotten.records.files import write_json
from unforgotten.reports.exports.export import exporters
from unforgotten.reports.exports.measured_models import MeasuredModel, measured_models

PUBLISHED = Path(__file__).parents[3] / "reports/published/tiny-seed0"
FORMATS = ("int4-g64", "fp4-b64")
METHOD = "NPO_GDR-bf16"
U64 = 2.0**-53
SHARES = 2**13 * U64
"""A share times 100 and over 100 again: two roundings an item, of sums over some tens of items, over what was removed, at least 1 % of them."""
PERCENT = 100
"""Largest value of a metric, of which a difference near 0 keeps the roundings."""
MEANS = 40 * 2 * U64
"""A mean of some twenty items, twice, and their quotient."""
SIDES = ("target", "unlearned", "q-target", "q-unlearned")
Rows = Mapping[str, Mapping[str, float]]


@pytest.fixture(scope="module")
def models() -> dict[str, MeasuredModel]:
    return {model.name: model for model in measured_models(PUBLISHED)}


def _paths(folder: Path) -> dict[str, Any]:
    return {
        "target": folder / "target",
        "unlearned": folder / f"unlearned-{METHOD}",
        "quantized": {f: (folder / f"target-{f}", folder / f"unlearned-{METHOD}-{f}") for f in FORMATS},
    }


def _rows(models: Mapping[str, MeasuredModel], name: str) -> list[RecoveryRow]:
    sides = ("target", f"unlearned-{METHOD}", f"target-{name}", f"unlearned-{METHOD}-{name}")
    return [
        recovery_row(
            metric, Items(*(np.asarray(models[side].items[metric]) for side in sides)), loss=metric[-4:] == "loss"
        )
        for metric in ("M1", "M2", "forget_loss")
    ]


@pytest.mark.parametrize("program", ["lm-eval", "openunlearning"])
def test_a_run_that_was_exported_is_judged_as_its_audit(
    program: str, models: dict[str, MeasuredModel], tmp_path: Path
) -> None:
    """The leg that `behaviour_leg` builds of these items, and its word; OpenUnlearning's values are shares and have no loss."""
    exporters(datetime(2026, 1, 2, tzinfo=UTC))[program].write(list(models.values()), tmp_path)
    result = judge(**_paths(tmp_path))
    leg = result["behaviour"]
    told = {f["format"]: {row["metric"]: row for row in f["recoveries"]} for f in leg["formats"]}
    for name in FORMATS:
        for row in _rows(models, name):
            if row["metric"] == "forget_loss" and program == "openunlearning":
                assert "forget_loss" not in told[name]
                continue
            mine = told[name][row["metric"]]
            slack = 0.0 if program == "lm-eval" else SHARES
            assert all(_close(dict(mine)[key], value, slack) for key, value in row.items())
    sides = {who: models[f"unlearned-{METHOD}{who}"].items for who in ("", *(f"-{name}" for name in FORMATS))}
    leaks = [
        leak(m, np.asarray(models["target"].items[m]), np.asarray(sides[""][m]), back)
        for m in ("M1", "M2")
        for back in [{f: np.asarray(sides[f"-{f}"][m]) for f in FORMATS}]
    ]
    audit = BehaviourLeg(
        benchmark="",
        metrics={"target": leg["metrics"]["target"], "unlearned": leg["metrics"]["unlearned"]},
        formats=[
            BehaviourFormat(
                format=f,
                metrics={},
                recoveries=[row for row in _rows(models, f) if row["metric"] in told[f]],
                effects=[],
            )
            for f in FORMATS
        ],
        leaks=[found for found in leaks if found is not None],
        notes=[],
    )
    assert leg["leaks"] == audit["leaks"]
    assert result["overall"] == decide("unclear", None, audit)["overall"]
    assert deciding_of(leg) == ("M1", "M2")
    assert retained_of(leg) == ("M4",)


def _close(mine: object, theirs: object, slack: float) -> bool:
    if isinstance(theirs, list):
        return isinstance(mine, list) and all(_close(a, b, slack) for a, b in zip(mine, theirs, strict=True))
    return mine == (pytest.approx(theirs, rel=slack, abs=PERCENT * slack) if isinstance(theirs, float) else theirs)


def _plain(path: Path, values: Rows) -> Path:
    rows = [{"id": i, "metric": m, "value": v} for m, items in values.items() for i, v in items.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _four(
    folder: Path, change: Callable[[str, dict[str, dict[str, float]]], None] = lambda side, rows: None
) -> dict[str, Any]:
    """Write 40 items a model: known to the target, unlearned, and back in both quantized models."""
    paths = {}
    for side in SIDES:
        known = 0.0 if side == "unlearned" else 1.0
        rows = {"M1": {str(i): 100 * known - i % 3 * known for i in range(40)}, "M4": {str(i): 60.0 for i in range(5)}}
        change(side, rows)
        paths[side] = _plain(folder / f"{side}.jsonl", rows)
    return {
        "target": paths["target"],
        "unlearned": paths["unlearned"],
        "quantized": {"q": (paths[SIDES[2]], paths[SIDES[3]])},
    }


def test_what_comes_back_is_undone_and_fails_the_gate(tmp_path: Path) -> None:
    result = judge(**_four(tmp_path))
    assert result["overall"] == "undone"
    assert judged_gate(result, ["undone"]).code == 1
    assert judged_gate(result, ["survives"]).code == 0
    assert judged_gate(result, []).code == 0


def test_what_stays_away_survives(tmp_path: Path) -> None:
    def gone(side: str, rows: dict[str, dict[str, float]]) -> None:
        if side == "q-unlearned":
            rows["M1"] = dict.fromkeys(rows["M1"], 0.0)

    assert judge(**_four(tmp_path, gone))["overall"] == "survives"


def test_a_broken_model_never_survives(tmp_path: Path) -> None:
    def broken(side: str, rows: dict[str, dict[str, float]]) -> None:
        if side.endswith("unlearned"):
            rows["M1"] = dict.fromkeys(rows["M1"], 0.0)
            rows["kept"] = {str(i): 0.1 for i in range(9)}
        else:
            rows["kept"] = {str(i): 0.9 for i in range(9)}

    result = judge(**_four(tmp_path, broken), metrics=["kept=retain"])
    assert result["overall"] == "undecided"
    assert result["findings"][0]["id"] == "retain-lost"
    assert "kept 0.9" in result["findings"][0]["sentence"]
    assert judged_gate(result, ["retain-lost"]).code == 1


def test_items_match_by_id_whatever_their_order_and_the_rest_is_named(tmp_path: Path) -> None:
    def shuffled(side: str, rows: dict[str, dict[str, float]]) -> None:
        if side == "q-unlearned":
            rows["M1"] = dict(reversed(rows["M1"].items()))
            del rows["M1"]["7"]
        if side == "target":
            rows["M1"]["extra"] = 50.0

    whole, odd = (tmp_path / name for name in ("whole", "odd"))
    whole.mkdir()
    odd.mkdir()

    def without(side: str, rows: dict[str, dict[str, float]]) -> None:
        del side, rows["M1"]["7"]

    result = judge(**_four(odd, shuffled))
    assert (
        result["behaviour"]["formats"][0]["recoveries"]
        == judge(**_four(whole, without))["behaviour"]["formats"][0]["recoveries"]
    )
    (note,) = [note for note in result["behaviour"]["notes"] if "do not match" in note]
    assert note.startswith(
        "M1: 2 of 41 items do not match and were left out: 7 (not of unlearned in q), extra (not of "
    )


def test_a_metric_of_unknown_meaning_is_asked_for(tmp_path: Path) -> None:
    def renamed(side: str, rows: dict[str, dict[str, float]]) -> None:
        del side
        rows["secret"] = rows.pop("M1")

    paths = _four(tmp_path, renamed)
    with pytest.raises(ValueError, match="say which, as --metric NAME=forget, got M4, secret"):
        judge(**paths)
    assert judge(**paths, metrics=["secret=forget"])["overall"] == "undone"
    rising = judge(**paths, metrics=["secret=forget-likelihood", "M4=forget"])
    assert deciding_of(rising["behaviour"]) == ("M4",)
    for bad in ("secret", "secret=good", "=forget", "other=forget"):
        with pytest.raises(ValueError, match=r"^--metric must "):
            judge(**paths, metrics=[bad])


def test_a_loss_falls_back(tmp_path: Path) -> None:
    """Less loss is more knowledge: a loss that returns to the target's has come back whole."""

    def with_loss(side: str, rows: dict[str, dict[str, float]]) -> None:
        rows["nll"] = {str(i): (3.0 if side == "unlearned" else 0.5) + i / 100 for i in range(20)}

    result = judge(**_four(tmp_path, with_loss), metrics=["nll=forget-loss"])
    (row,) = [row for row in result["behaviour"]["formats"][0]["recoveries"] if row["metric"] == "nll"]
    assert row["removed"]
    assert row["rho"] == pytest.approx(1.0, abs=MEANS)


def test_a_value_out_of_range_is_refused_with_its_item(tmp_path: Path) -> None:
    def percent(side: str, rows: dict[str, dict[str, float]]) -> None:
        rows["verbmem_f"] = {i: value for i, value in rows.pop("M1").items()}
        del side

    with pytest.raises(ValueError, match=r"target.jsonl: verbmem_f: values must be in \[0, 1\], got 100.0 for item 0"):
        judge(**_four(tmp_path, percent))


def test_one_file_for_two_models_is_refused(tmp_path: Path) -> None:
    paths = _four(tmp_path)
    paths["quantized"] = {"q": (paths["target"], paths["quantized"]["q"][1])}
    with pytest.raises(ValueError, match="must be the results of one model, got it for target and for target in q"):
        judge(**paths)


def test_the_result_is_read_again_for_an_audit(tmp_path: Path) -> None:
    result = judge(**_four(tmp_path))
    write_judged(result, tmp_path / "new/judged.json")
    assert read_judged(tmp_path / "new/judged.json") == result["behaviour"]
    for bad in ({}, {"schema": "unforgotten.audit/1"}):
        write_json(tmp_path / "bad.json", bad)
        with pytest.raises(ValueError, match="must be a file that unforgotten judge --out wrote"):
            read_judged(tmp_path / "bad.json")


def test_a_retrained_model_stands_beside_them(tmp_path: Path) -> None:
    paths = _four(tmp_path)
    trained = _plain(tmp_path / "retrained.jsonl", {"M1": {"a": 10.0, "b": 20.0}})
    assert judge(**paths, retrained=trained)["behaviour"]["metrics"]["retrained"]["M1"]["value"] == 15.0


def test_leg_functions_take_several_formats(tmp_path: Path) -> None:
    """The union leak is over all formats: an item that one of them brings back counts once."""
    paths = _four(tmp_path)
    other = {
        side: _plain(
            tmp_path / f"{side}-other.jsonl",
            {"M1": {str(i): 100.0 * (side == "t") for i in range(40)}, "M4": {"0": 60.0, "1": 60.0}},
        )
        for side in "tu"
    }
    paths["quantized"] |= {"r": (other["t"], other["u"])}
    result = judge(**paths)
    assert [f["format"] for f in result["behaviour"]["formats"]] == ["q", "r"]
    assert result["behaviour"]["leaks"][0]["formats"] == {"q": 40, "r": 0}
    assert result["behaviour"]["leaks"][0]["union"] == 40


def test_the_terminal_has_the_verdict_first_and_the_code_last(tmp_path: Path) -> None:
    stream = io.StringIO()
    trained = _plain(tmp_path / "retrained.jsonl", {"M1": {"a": 10.0, "b": 20.0}})
    result = judge(**_four(tmp_path), retrained=trained)
    print_judged(result, "exit 1: because", Console(file=stream, width=100))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Verdict: undone"
    assert lines[-1] == "exit 1: because"
    (row,) = [line for line in lines if line.startswith("q") and "M1" in line]
    assert row.split()[:5] == ["q", "M1", "99", "0", "99,"]
    assert "Retrained model: M1 15." in lines
    assert "brackets" not in stream.getvalue()


def _checkpoints(folder: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (64, 64)).astype(np.float32)
    for name, moved in (("t", 0.0), ("u", 0.05)):
        (folder / name).mkdir()
        save_file(
            {"model.layers.0.self_attn.q_proj.weight": weights + np.float32(moved)}, folder / name / "model.safetensors"
        )


def test_the_commands_judge_and_audit_it(
    tmp_path: Path, exit_code: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An audit of weights that passed says undone where the answers that were judged came back."""
    _four(tmp_path)
    _checkpoints(tmp_path)
    monkeypatch.chdir(tmp_path)
    sides = ["--target", "target.jsonl", "--unlearned", "unlearned.jsonl"]
    quantized = ["--quantized-target", "int4-g64=q-target.jsonl", "--quantized-unlearned", "int4-g64=q-unlearned.jsonl"]
    out = ["--out", "out/judged.json"]
    assert exit_code("judge", *sides, *quantized, *out, "--fail-on", "undone") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "exit 1: --fail-on undone: the verdict is undone"
    assert exit_code("judge", *sides, *quantized[:2], "--quantized-unlearned", "q=x") == 2
    assert "--quantized-unlearned must name the formats" in capsys.readouterr().err

    asked = [
        "t",
        "u",
        "--formats",
        "int4-g64",
        "--judged",
        "out/judged.json",
        "--fail-on",
        "undone",
        "--json",
        "--quiet",
    ]
    assert exit_code("audit", *asked) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"]["legs"]["behaviour"] == "undone"
    assert result["behaviour"] == read_judged(tmp_path / "out/judged.json")
    assert exit_code("audit", *asked, "--benchmark", ".") == 2
    assert "--judged must stand without --benchmark" in capsys.readouterr().err
    assert exit_code("audit", "t", "u", "--formats", "nf4-b64", *asked[4:6], "--json", "--quiet", "--force") == 0
    assert json.loads(capsys.readouterr().out)["behaviour"]["notes"][0].startswith(
        "Judged in int4-g64, in which the weights"
    )


@pytest.mark.parametrize(
    ("back", "judged", "formats", "word", "code", "step"),
    [
        (
            False,
            ["q"],
            "int4-g64,nf4-b64",
            "undecided",
            1,
            "To decide: judge it in int4-g64, nf4-b64 too, by these names",
        ),
        (False, ["int4-g64"], "int4-g64,nf4-b64", "undecided", 1, "To decide: judge it in nf4-b64 too, by these names"),
        (False, ["int4-g64", "q"], "int4-g64", "survives", 0, "What now: it may be released in int4-g64, q; other"),
        (False, ["int4-g64"], "int4-g64", "survives", 0, "What now: it may be released in int4-g64; other"),
        (True, ["q"], "int4-g64", "undone", 1, "What now: do not release it in q."),
    ],
)
def test_a_judged_evaluation_says_nothing_of_formats_that_nobody_judged(
    back: bool,
    judged: list[str],
    formats: str,
    word: str,
    code: int,
    step: str,
    tmp_path: Path,
    exit_code: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As of a leg that the audit measured itself: "survives" is of all its formats, and no release is of none."""

    def changed(side: str, rows: dict[str, dict[str, float]]) -> None:
        if side == "q-unlearned" and not back:
            rows["M1"] = dict.fromkeys(rows["M1"], 0.0)

    _checkpoints(tmp_path)
    first: dict[str, Any] = {}
    for name in judged:
        (tmp_path / name).mkdir()
        found = _four(tmp_path / name, changed)
        first = first or {**found, "quantized": {}}
        first["quantized"][name] = found["quantized"]["q"]
    write_judged(judge(**first), tmp_path / "judged.json")
    sides = [str(tmp_path / side) for side in "tu"]
    asked = ["--formats", formats, "--judged", str(tmp_path / "judged.json"), "--out", str(tmp_path / "out"), "--quiet"]
    assert exit_code("audit", *sides, *asked, "--fail-on", "undone,undecided") == code
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out/audit.json").read_text())
    assert (result["verdict"]["overall"], result["verdict"]["legs"]["behaviour"]) == (word, word)
    assert step in shown
    missing = ", ".join(name for name in formats.split(",") if name not in judged)
    assert (f"Behaviour: nothing was measured in {missing}." in result["verdict"]["reasons"]) == (word == "undecided")
    assert ("Note: Judged in q, in which the weights were not measured" in shown) == ("q" in judged)
    assert (f"Note: Not judged in {missing}: what comes back in these formats was not" in shown) == bool(missing)

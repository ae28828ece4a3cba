"""A prediction of a study is compared with every cell that it speaks of, and with no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unforgotten.experiments.studies.runs import Prediction
from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.predicted import Outcome, came_true, outcomes
from unforgotten.reports.studies.runs import predicted_table, runs_table

RUNS = Path(__file__).parent / "small_runs"


def asked(**given: Any) -> dict[str, Any]:
    one = Prediction(says="it is so", metric="gain", **given)
    return {"settings": {"predicted": [one.model_dump(mode="json")]}}


def gains(method: str, storage: str, formats: tuple[str, ...]) -> list[float]:
    rows = [json.loads(line) for run in sorted(RUNS.glob("*-seed0")) for line in rows_content(run).splitlines()]
    return [
        row["value"]
        for row in rows
        if row["metric"] == "gain" and (row["method"], row["storage"]) == (method, storage) and row["format"] in formats
    ]


def test_its_cells_are_those_of_its_methods_storages_and_formats() -> None:
    wanted = gains("NPO_GDR", "fp32", ("int4-g64", "fp4-b64"))
    (told,) = outcomes(RUNS, asked(methods=("NPO_GDR",), storages=("fp32",), formats=("int4-*", "fp4-b64"), low=0.9))
    assert list(told.values) == wanted
    assert len(wanted) == 2
    assert (told.held, told.word) == (2, "yes")


def test_the_ends_belong_to_the_range_and_what_is_beyond_does_not() -> None:
    values = gains("NPO_GDR", "bf16", ("int4-g64", "fp4-b64"))
    of = {"methods": ("NPO_GDR",), "storages": ("bf16",), "formats": ("int4-g64", "fp4-b64")}
    (all_in,) = outcomes(RUNS, asked(**of, low=min(values), high=max(values)))
    (one_in,) = outcomes(RUNS, asked(**of, high=min(values)))
    (none_in,) = outcomes(RUNS, asked(**of, low=max(values) + 1))
    assert (all_in.word, one_in.word, none_in.word) == ("yes", "in part", "no")
    assert one_in.held == 1


def test_what_no_row_speaks_of_is_not_measured() -> None:
    study = asked(methods=("no_such_*",), low=0.9)
    (told,) = outcomes(RUNS, study)
    assert told.word == "not measured"
    assert predicted_table(RUNS, study).splitlines()[-1].endswith("| – | 0 of 0 | not measured |")


def test_a_study_without_predictions_has_no_table_of_them() -> None:
    assert predicted_table(RUNS, {"settings": {}}) == ""


@pytest.mark.parametrize("given", [{}, {"low": 1.0, "high": 0.5}])
def test_one_that_cannot_fail_or_cannot_hold_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="low"):
        Prediction.model_validate({"says": "it is so", "metric": "gain", **given})


def test_what_did_not_come_true_is_named_with_what_was_seen() -> None:
    true = Outcome("it holds", "gain", 0.9, None, [0.95, 1.0])
    false = Outcome("it fails", "gain", None, 0.3, [0.2, 0.4])
    unseen = Outcome("nobody looked", "gain", 0.0, None, [])
    assert came_true([true, unseen]) == "1 of 1 statements came true in every cell."
    told = came_true([true, false, unseen])
    assert told == "1 of 2 statements came true in every cell; not: it fails (at most 0.3; 1 of 2 cells, 0.20 to 0.40)."
    assert came_true([unseen]) == ""


def test_the_table_of_runs_has_the_seeds_that_a_level_has(tmp_path: Path) -> None:
    for name, source in (("a-seed0", "one-arm-seed0"), ("a-seed1", "two-storages-seed0"), ("b-seed1", "one-arm-seed0")):
        (tmp_path / name).symlink_to(RUNS / source)
    settings = {"seeds": [0, 1], "seeds_of": {"b": [1]}, "vary": {"arm": {"a": {}, "b": {}}}, "show": ["gain"]}
    table = runs_table(tmp_path, {"question": "So?", "settings": settings}).splitlines()
    assert table[0] == "So? Seeds: 0, 1; b: 1."
    assert {line.split(" | ")[0] for line in table[4:]} == {"| a", "| b"}
    with pytest.raises(ValueError, match="b-seed0: must be the directory of a run"):
        runs_table(tmp_path, {"question": "So?", "settings": settings | {"seeds_of": {}}})

"""The layouts of harnesses: what is read of each, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unforgotten.audit.judged.items import digest, read_items
from unforgotten.records.files import write_json


def _identity(place: int, *texts: str) -> str:
    return f"{place}#{digest(chr(10).join(texts))}"


def _muse(folder: Path, value: float, texts: int = 12) -> Path:
    rows = [
        {"prompt": f"p{i}", "gt": f"g{i}", "response": "…", "rougeL": value, "rougeL_recall": 0.5} for i in range(texts)
    ]
    write_json(folder / "verbmem_f/log.json", rows)
    write_json(folder / "verbmem_f/agg.json", {"mean_rougeL": value})
    return folder


def test_logs_of_muse(tmp_path: Path) -> None:
    for name in ("a", "a/verbmem_f"):
        (tmp_path / name).mkdir()
    items = read_items(_muse(tmp_path / "a", 0.75))
    assert items.values == {"verbmem_f": {_identity(i, f"p{i}", f"g{i}"): 0.75 for i in range(12)}}


def _open_unlearning(
    folder: Path, items: Mapping[str, Any], total: float | None, metric: str = "forget_Q_A_ROUGE"
) -> Path:
    folder.mkdir()
    write_json(
        folder / "TOFU_EVAL.json",
        {metric: {"agg_value": total, "value_by_index": items}, "model_utility": {"agg_value": 0.5}},
    )
    return folder


def test_files_of_open_unlearning_say_which_value_was_aggregated(tmp_path: Path) -> None:
    items = {str(i): {"rougeL_f1": 0.25, "rougeL_recall": 0.5, "input": f"q{i}", "ground_truth": "a"} for i in range(4)}
    recall = read_items(_open_unlearning(tmp_path / "recall", items, 0.5))
    assert set(recall.values["forget_Q_A_ROUGE"].values()) == {0.5}
    f1 = read_items(_open_unlearning(tmp_path / "f1", items, 0.25))
    assert set(f1.values["forget_Q_A_ROUGE"].values()) == {0.25}
    assert list(f1.values["forget_Q_A_ROUGE"]) == [_identity(i, f"q{i}", "a") for i in range(4)]
    with pytest.raises(
        ValueError, match=r"agg_value must be the mean of rougeL_f1, rougeL_recall of its items, got 0\.4"
    ):
        read_items(_open_unlearning(tmp_path / "other", items, 0.4))


def test_an_item_without_a_value_is_left_out_with_a_note(tmp_path: Path) -> None:
    items = {"0": {"prob": 0.5}, "1": {"prob": None}, "2": {"prob": 0.5}, "3": None}
    found = read_items(_open_unlearning(tmp_path / "a", items, 0.5, "forget_Q_A_Prob"))
    assert found.values == {"forget_Q_A_Prob": {"0": 0.5, "2": 0.5}}
    assert [note.rpartition(": ")[2] for note in found.notes] == [
        f"item {i} has no value and was left out." for i in (1, 3)
    ]


def _sample(doc: int, value: float, **more: Any) -> str:
    return json.dumps({"doc_id": doc, "doc_hash": f"{doc:064x}"[::-1], "metrics": ["acc"], "acc": value, **more}) + "\n"


def test_samples_of_lm_eval_are_the_newest_of_each_task(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for time, value in (("2026-01-02T03-04-05.6", 0.0), ("2026-02-02T03-04-05.6", 1.0)):
        (folder / f"samples_wmdp_bio_{time}.jsonl").write_text("".join(_sample(i, value) for i in range(3)))
    (folder / "samples_gsm8k_2026-01-02T03-04-05.6.jsonl").write_text(_sample(0, 1.0, filter="strict-match"))
    found = read_items(folder)
    assert {name: list(items.values()) for name, items in found.values.items()} == {
        "wmdp_bio:acc": [1.0, 1.0, 1.0],
        "gsm8k:acc,strict-match": [1.0],
    }


BAD: Mapping[str, tuple[str, str]] = {
    "no JSON": ("x.jsonl", "{"),
    "no object": ("x.jsonl", "[1]"),
    "no value": ("x.jsonl", '{"id": 1, "metric": "M1"}'),
    "words for a value": ("x.jsonl", '{"id": 1, "metric": "M1", "value": "high"}'),
    "an id twice": ("x.jsonl", '{"id": 1, "metric": "M1", "value": 1}\n{"id": 1, "metric": "M1", "value": 2}'),
    "no metrics": ("TOFU_EVAL.json", "[]"),
    "nothing": ("x.jsonl", ""),
    "unknown": ("results.csv", "a,b"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_breaks_its_layout_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, text = BAD[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        read_items(tmp_path)
    assert "\n" not in str(error.value)

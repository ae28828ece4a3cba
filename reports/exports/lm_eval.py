"""The files of lm-eval: `results_TIME.json` of each model, and `samples_TASK_TIME.jsonl` with its items.

A metric is a task `unforgotten_NAME` with the one metric `value`, in the unit of the rows. lm-eval's readers take the newest
of the files that they find by TIME in the name: here the time when the last row was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unforgotten.records.files import write_json, write_json_lines
from unforgotten.records.metrics import higher_is_better
from unforgotten.reports.exports.measured_models import MeasuredModel

NAME = "lm-eval"
STATEMENT = "a folder of each model with results_TIME.json and samples_TASK_TIME.jsonl"
METRIC = "value"


def write(models: Sequence[MeasuredModel], folder: Path, *, written: datetime) -> None:
    """Write the files of each model.

    Args:
        models: models.
        folder: folder that takes theirs.
        written: time when the rows were written.
    """
    time = written.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")
    for model in models:
        own = folder / model.name
        own.mkdir()
        write_json(own / f"results_{time}.json", _results(model, written))
        for metric, items in model.items.items():
            write_json_lines(own / f"samples_{_task(metric)}_{time}.jsonl", map(_sample, range(len(items)), items))


def _task(metric: str) -> str:
    return f"unforgotten_{metric}"


def _results(model: MeasuredModel, written: datetime) -> dict[str, Any]:
    tasks = {_task(metric): row for metric, row in model.rows.items() if row.value is not None}
    first = next(iter(model.rows.values()))
    return {
        "results": {
            task: {
                "alias": row.metric,
                f"{METRIC},none": row.value,
                f"{METRIC}_stderr,none": "N/A" if row.stderr is None else row.stderr,
            }
            for task, row in tasks.items()
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: {"task": task, "metadata": {"version": row.revision}} for task, row in tasks.items()},
        "versions": {task: row.revision for task, row in tasks.items()},
        "higher_is_better": {
            task: {METRIC: better}
            for task, row in tasks.items()
            if (better := higher_is_better(row.metric)) is not None
        },
        "n-samples": {task: {"original": row.n, "effective": row.n} for task, row in tasks.items() if row.n},
        "config": {"model": "unforgotten", "model_args": model.name, "seed": first.seed, "device": first.device},
        "date": written.timestamp(),
        "model_name": model.name,
    }


def _sample(index: int, value: float) -> dict[str, Any]:
    return {"doc_id": index, "filter": "none", "metrics": [METRIC], METRIC: value}

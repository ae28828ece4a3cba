"""The files of OpenUnlearning's evaluation on MUSE: `MUSE_EVAL.json` with items and `MUSE_SUMMARY.json`, of each model.

Shares there lie in [0, 1], ROUGE among them; `privleak` is a percentage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unforgotten.records.files import write_json
from unforgotten.reports.exports.measured_models import MeasuredModel

NAME = "openunlearning"
STATEMENT = "a folder of each model with MUSE_EVAL.json and MUSE_SUMMARY.json"
LOGS, SUMMARY = "MUSE_EVAL.json", "MUSE_SUMMARY.json"


class Written(NamedTuple):
    """What a metric is called there, the name of an item's value, and what a value here is divided by."""

    name: str
    item: str
    unit: float


METRICS: Mapping[str, Written] = {
    "M1": Written("forget_verbmem_ROUGE", "rougeL_f1", 100.0),
    "M2": Written("forget_knowmem_ROUGE", "rougeL_f1", 100.0),
    "M4": Written("retain_knowmem_ROUGE", "rougeL_f1", 100.0),
    "M3": Written("privleak", "score", 1.0),
    "extraction_strength": Written("extraction_strength", "score", 1.0),
    "exact_memorization": Written("exact_memorization", "score", 1.0),
    "forget_probability": Written("forget_Q_A_Prob", "prob", 1.0),
    "retain_probability": Written("retain_Q_A_Prob", "prob", 1.0),
}


def write(models: Sequence[MeasuredModel], folder: Path) -> None:
    """Write both files of each model."""
    for model in models:
        logs = dict(sorted(_logs(model).items()))
        (folder / model.name).mkdir()
        write_json(folder / model.name / LOGS, logs)
        summary = {name: entry["agg_value"] for name, entry in logs.items() if entry["agg_value"] is not None}
        write_json(folder / model.name / SUMMARY, summary)


def _logs(model: MeasuredModel) -> dict[str, dict[str, Any]]:
    logs: dict[str, dict[str, Any]] = {}
    for metric, (name, item, unit) in METRICS.items():
        if metric not in model.rows:
            continue
        value = model.value(metric)
        logs[name] = {"agg_value": None if value is None else value / unit}
        if metric in model.items:
            logs[name]["value_by_index"] = {str(i): {item: x / unit} for i, x in enumerate(model.items[metric])}
    return logs

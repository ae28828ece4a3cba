"""The models of a run as other programs see them: each with its metrics, and the items of those that have any.

for model in measured_models(Path("reports/published/tiny-seed0")):
model.name, model.values["M1"].value, model.items["M1"]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unforgotten.records.items import read_items
from unforgotten.records.rows import Row, Run, read_run

EPSILON = 2.0**-53
MODELS = ("base", "target", "retrained", "unlearned")


@dataclass(frozen=True)
class MeasuredModel:
    """One model in one precision.

    Attributes:
        name: name of it, "unlearned-GA_KLR-bf16-int4-g64" or, unquantized, "unlearned-GA_KLR-bf16".
        rows: its rows, by metric.
        items: values of the single items, by metric, of metrics that are the mean of theirs.
    """

    name: str
    rows: Mapping[str, Row]
    items: Mapping[str, Sequence[float]]

    def value(self, metric: str) -> float | None:
        """Return the value of a metric; None where it was not measured or is undefined."""
        row = self.rows.get(metric)
        return None if row is None else row.value


def measured_models(folder: Path, run: Run | None = None) -> Iterator[MeasuredModel]:
    """Yield the models of a run in the order of its rows, without what was measured of pairs of them.

    Args:
        folder: directory of the run.
        run: its rows, where they were read.

    Raises:
        ValueError: the folder holds no run, or a file of items that its rows name cannot be read.
    """
    run = read_run(folder) if run is None else run
    models: dict[str, dict[str, Row]] = {}
    for row in run.rows:
        measured = row.stage is None or not row.stage.startswith(("decompose ", "stand-in "))
        if row.model in MODELS and measured and "@" not in row.metric:
            models.setdefault(row.file_stem.removesuffix("-none"), {})[row.metric] = row
    for name, rows in models.items():
        yield MeasuredModel(name, rows, _items(folder, rows))


def _items(folder: Path, rows: Mapping[str, Row]) -> dict[str, list[float]]:
    """Read the items that the rows name; a published run may have given them away."""
    paths = {row.items for row in rows.values() if row.items is not None}
    found: dict[str, list[float]] = {}
    for path in sorted(paths):
        found |= read_items(folder, path)
    named = {metric: found[metric] for metric, row in rows.items() if row.items is not None}
    return {metric: items for metric, items in named.items() if _is_mean(rows[metric].value, items)}


def _is_mean(value: float | None, items: Sequence[float]) -> bool:
    """Tell whether a value is the mean of its items; that of auc is none, whose items are scores of texts."""
    if value is None or not items:
        return False
    lost = len(items) * EPSILON * math.fsum(map(abs, items)) / len(items)  # a sum in any order, and a quotient
    return abs(math.fsum(items) / len(items) - value) <= lost

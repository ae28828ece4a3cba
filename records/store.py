"""The rows of a run: append-only JSON lines, grouped in stages, so that a killed run goes on where it stopped.

A stage counts as done once its line count stands in `stages.json`, which is replaced after the rows are on disk. Rows of
a stage that is not there, and half a line at the end, are what a kill left behind: opening the store drops them.

A file of rows has one writer. Where several processes measure at a time each writes a part, a folder below that of the run, and
one process takes the parts into the run's rows.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unforgotten.records.files import write_json, write_text
from unforgotten.records.items import Items, read_items
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.rows import Row, Subject

STAGES_FILE = "stages.json"


@dataclass(frozen=True)
class Measurement:
    """One metric of one model as it was measured, with what `Row` leaves to a file: the values of the single items.

    Attributes:
        metric: name of the metric, see `records/metrics.py`.
        value: number that was measured; NaN where it is undefined.
        stderr: standard error of the value.
        n: number of items behind it.
        items: values of the single items, where they are kept.
        interval: 95 % interval of its own, where the standard error does not tell it; NaN for an open end.
    """

    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    items: tuple[float, ...] | None = None
    interval: tuple[float, float] | None = None


class RowStore:
    """`rows.jsonl`, `items/*.json` and `stages.json` of one run directory.

    Args:
        folder: directory of the run.
        common: fields of `Row` that all rows of the run share: profile, seed, hash of the configuration and so on.
        part: folder below that of the run for the rows and stages of one process among several; items stay with the run.
    """

    def __init__(self, folder: Path, common: dict[str, Any], part: str | None = None) -> None:
        self.folder = folder
        self.common = common
        place = folder if part is None else folder / part
        self.rows_path = place / ROWS_FILE
        self._stages_path = place / STAGES_FILE
        self.stages = _read_stages(self._stages_path)
        self._before = {} if part is None else _read_stages(folder / STAGES_FILE)
        self._drop_unfinished()

    def done(self, stage: str) -> bool:
        """Whether the rows of this stage are complete: here, or of a part in the run."""
        return stage in self.stages or stage in self._before

    def append(self, stage: str, subject: Subject, measurements: list[Measurement], *, items_of: str = "model") -> None:
        """Write the rows of a stage, then mark it as done.

        Args:
            stage: name of the stage, which must not be done.
            subject: model that was measured.
            measurements: metrics measured of it, one row each.
            items_of: owner of the single items, "model" or "pair", after which their file is named.
        """
        name = _items_name(subject, items_of)
        items = {m.metric: m.items for m in measurements if m.items is not None}
        if items:
            write_json(self.folder / name, items)
        rows = [self._row(stage, subject, m, name) for m in measurements]
        self._append_lines(stage, [json.dumps(row, allow_nan=False) + "\n" for row in rows])

    def append_all(self, stage: str, measured: Iterable[tuple[Subject, list[Measurement]]]) -> None:
        """Write the rows of a stage that measures several models and keeps no items, then mark it as done."""
        rows = [self._row(stage, subject, m, "") for subject, found in measured for m in found]
        self._append_lines(stage, [json.dumps(row, allow_nan=False) + "\n" for row in rows])

    def take(self, part: str) -> None:
        """Append the rows of a part, stage by stage in its order, and delete it; a stage that is done here is left out."""
        other = RowStore(self.folder, {}, part)
        lines: dict[str, list[str]] = defaultdict(list)
        if other.stages:
            for line in other.rows_path.read_text(encoding="utf-8").splitlines(keepends=True):
                lines[json.loads(line)["stage"]].append(line)
        for stage in other.stages:
            if not self.done(stage):
                self._append_lines(stage, lines[stage])
        shutil.rmtree(self.folder / part, ignore_errors=True)

    def all_items(self, subject: Subject) -> Items:
        """Return the values of one model's single items, by metric, as an earlier stage wrote them."""
        return read_items(self.folder, _items_name(subject, "model"))

    def _append_lines(self, stage: str, lines: list[str]) -> None:
        self.rows_path.parent.mkdir(parents=True, exist_ok=True)
        with self.rows_path.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        self.stages[stage] = len(lines)
        write_json(self._stages_path, self.stages)

    def _row(self, stage: str, subject: Subject, m: Measurement, items: str) -> dict[str, Any]:
        row = Row(
            **asdict(subject),
            metric=m.metric,
            value=_finite(m.value),
            stderr=_finite(m.stderr),
            n=m.n,
            items=items if m.items is not None else None,
            stage=stage,
            **self.common,
        )
        return asdict(row) | {"interval": [_finite(end) for end in m.interval] if m.interval else None}

    def _drop_unfinished(self) -> None:
        if not self.rows_path.exists():
            return
        kept = []
        for line in self.rows_path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["stage"] in self.stages:
                kept.append(line)
        write_text(self.rows_path, "".join(kept))


def _read_stages(path: Path) -> dict[str, int]:
    """Return the number of rows of each finished stage; none without a file."""
    return json.loads(path.read_text()) if path.exists() else {}


def _items_name(subject: Subject, items_of: str) -> str:
    return f"items/{subject.file_stem}{'' if items_of == 'model' else '-pair'}.json"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

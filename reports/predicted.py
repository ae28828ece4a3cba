"""What a study of runs predicted of its cells, and whether it came true.

for told in outcomes(Path("reports/published/released-code"), study):
    print(told.says, told.held, told.cells)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from unforgotten.records.packed_rows import holds_rows
from unforgotten.records.rows import Row, read_run


class Outcome(NamedTuple):
    """A prediction beside what was seen.

    Attributes:
        says: statement.
        metric: metric that it speaks of.
        low, high: range that it gives; None where it has no end.
        values: what was seen, one for each cell that has a value.
    """

    says: str
    metric: str
    low: float | None
    high: float | None
    values: Sequence[float]

    @property
    def cells(self) -> int:
        """Number of cells that it speaks of."""
        return len(self.values)

    @property
    def held(self) -> int:
        """Number of cells inside its range."""
        return sum(self.within(value) for value in self.values)

    @property
    def word(self) -> str:
        """Whether it came true: "yes", "no", "in part", or "not measured" without a cell."""
        if not self.cells:
            return "not measured"
        return "yes" if self.held == self.cells else "in part" if self.held else "no"

    def within(self, value: float) -> bool:
        """Whether a value lies in the range, its ends included."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)


def outcomes(folder: Path, study: Mapping[str, Any]) -> list[Outcome]:
    """Return what was predicted beside what was seen, in the order of the predictions; none where nothing was predicted.

    Args:
        folder: folder of the study, with its runs.
        study: question and settings, as in `study.json`.
    """
    predicted = study["settings"].get("predicted", ())
    runs = [read_run(path) for path in sorted(filter(holds_rows, folder.glob("*")))] if predicted else []
    rows = [row for run in runs for row in run.rows if row.model == "unlearned"]
    return [Outcome(one["says"], one["metric"], one["low"], one["high"], list(_values(rows, one))) for one in predicted]


def came_true(found: Sequence[Outcome]) -> str:
    """Return in a sentence how many predictions came true, and what was seen of the others; empty without any."""
    measured = [told for told in found if told.cells]
    if not measured:
        return ""
    others = [
        f"{told.says} ({range_text(told.low, told.high)}; {told.held} of {told.cells} cells, {min(told.values):.2f} to {max(told.values):.2f})"
        for told in measured
        if told.word != "yes"
    ]
    right = f"{len(measured) - len(others)} of {len(measured)} statements came true in every cell"
    return f"{right}; not: {'; '.join(others)}." if others else f"{right}."


def _values(rows: Sequence[Row], one: Mapping[str, Any]) -> Iterator[float]:
    asked = {name: one[f"{name}s"] for name in ("method", "storage", "format")}
    for row in rows:
        fits = (
            not wanted or any(fnmatchcase(str(getattr(row, name)), w) for w in wanted) for name, wanted in asked.items()
        )
        if row.metric == one["metric"] and row.value is not None and all(fits):
            yield row.value


def range_text(low: float | None, high: float | None) -> str:
    """Return a range in words.

    >>> range_text(0.9, 1.1), range_text(None, 0.3), range_text(0.65, None)
    ('0.9 to 1.1', 'at most 0.3', 'at least 0.65')
    """
    if low is None or high is None:
        return f"at most {high:g}" if low is None else f"at least {low:g}"
    return f"{low:g} to {high:g}"

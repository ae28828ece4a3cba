"""Several runs together: what theory says before a measurement against what was seen, and M1-M4 as the paper's Table 1.

    predictions_table([read_run(folder) for folder in folders]).rows

A prediction is compared in every cell: a run, a method, a storage arm and a format.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from unforgotten.records.rows import Run, select
from unforgotten.reports.labels import number, precision_label, spread, storage_label
from unforgotten.reports.run.conjectures import LEAST_EFFECT
from unforgotten.reports.run.tables import Table

PAPER = ("M1", "M2", "M3", "M4")


class Cell(NamedTuple):
    """One cell of one prediction.

    Attributes:
        storage: storage arm.
        format: name of the format.
        predicted: number that was predicted.
        seen: number that was measured.
        bounds: 95 % interval of the prediction, where it has one.
    """

    storage: str
    format: str
    predicted: float
    seen: float
    bounds: tuple[float, float] | None = None

    @property
    def miss(self) -> float:
        """What was measured less what was predicted."""
        return self.seen - self.predicted


class Prediction(NamedTuple):
    """A statement that says a number before it is measured.

    Attributes:
        name: words for it in figures.
        statement: what it says, and under which condition.
        metric: metric whose digits its numbers have.
        cells: function that yields its cells of a run.
        relative: whether a miss is told as a quotient.
    """

    name: str
    statement: str
    metric: str
    cells: Callable[[Run], Iterator[Cell]]
    relative: bool


def flips(run: Run) -> Iterator[Cell]:
    """Yield the code flips expected of the update beside those counted."""
    for expected in select(run.rows, metric="expected_flips"):
        seen = run.value("code_flips", *expected.place)
        if expected.value and seen is not None:
            yield Cell(expected.storage or "", expected.format, expected.value, seen, expected.bounds)


def whole_gain(run: Run) -> Iterator[Cell]:
    """Yield a gain of 1 beside the gain measured."""
    for row in select(run.rows, metric="gain"):
        if row.value is not None:
            yield Cell(row.storage or "", row.format, 1.0, row.value)


def taken_back(run: Run) -> Iterator[Cell]:
    """Yield 1 - gain beside the share of the added forget loss that gating took back."""
    before = run.value("forget_loss", "target")
    for row in select(run.rows, metric="gain"):
        after = run.value("forget_loss", "unlearned", row.method, row.storage)
        lost = run.value("gating_effect", *row.place)
        if row.value is None or lost is None or before is None or after is None or after - before < LEAST_EFFECT:
            continue
        yield Cell(row.storage or "", row.format, 1 - row.value, lost / (after - before))


PREDICTIONS = (
    Prediction(
        "code flips",
        "T6, T7: as many codes change as the sizes of the updates and of the cells say, if weights lie at random places in "
        "their cells",
        "code_flips",
        flips,
        relative=True,
    ),
    Prediction("gain", "T7: the gain is 1, if they do", "gain", whole_gain, relative=False),
    Prediction(
        "share taken back",
        "the update counts alike in every direction: gating takes back 1 - gain of the forget loss that unlearning added",
        "gain",
        taken_back,
        relative=False,
    ),
)


def predictions_table(runs: Sequence[Run]) -> Table | None:
    """Return a line for each prediction and storage arm; None where no run has what they speak of."""
    lines = [
        _line(prediction, storage, cells)
        for prediction in PREDICTIONS
        for storage, cells in _by_storage(prediction, runs).items()
    ]
    caption = (
        "What was predicted without a measurement, and what was seen, over all cells of all runs: methods times formats. Miss: seen "
        "less predicted; of code flips, seen over predicted. Outside: cells beyond the 95 % interval of the prediction, where it has "
        "one. Cells of one run share its target, so they are no independent cases."
    )
    columns = ("Prediction", "Storage arm", "Runs", "Cells", "Predicted", "Seen", "Miss: median (range)", "Outside")
    return Table(caption, columns, lines, heads=2) if lines else None


def _by_storage(prediction: Prediction, runs: Sequence[Run]) -> dict[str, list[list[Cell]]]:
    """Return the cells of each run that has any, by storage arm."""
    found: dict[str, list[list[Cell]]] = {}
    for run in runs:
        cells = list(prediction.cells(run))
        for storage in dict.fromkeys(cell.storage for cell in cells):
            found.setdefault(storage, []).append([cell for cell in cells if cell.storage == storage])
    return found


def _line(prediction: Prediction, storage: str, by_run: Sequence[Sequence[Cell]]) -> list[str]:
    cells = [cell for one in by_run for cell in one]
    misses = [cell.seen / cell.predicted if prediction.relative else cell.miss for cell in cells]
    bounded = [(cell.seen, cell.bounds) for cell in cells if cell.bounds is not None]
    outside = sum(not low <= seen <= high for seen, (low, high) in bounded)
    return [
        prediction.statement,
        storage_label(storage),
        str(len(by_run)),
        str(len(cells)),
        _range(prediction.metric, [cell.predicted for cell in cells]),
        _range(prediction.metric, [cell.seen for cell in cells]),
        spread(misses).replace("-", "−"),
        f"{outside} of {len(bounded)}" if bounded else "–",
    ]


def _range(metric: str, values: Sequence[float]) -> str:
    low, high = (number(metric, end) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def paper_table(runs: Sequence[Run]) -> Table:
    """Return M1-M4 with methods as lines and each precision below the method, as the paper's Table 1 has them.

    A cell is the mean over the runs that have it, with the lowest and the highest value where there are several.
    """
    places = dict.fromkeys(
        row.place
        for model in ("target", "retrained", "unlearned")
        for run in runs
        for row in select(run.rows, model=model, metric="M1")
    )
    order = {place[:3]: None for place in places}
    lines = [
        [model if method is None else method, storage_label(storage), precision_label(name), *cells]
        for model, method, storage in order
        for name in dict.fromkeys(place[3] for place in places if place[:3] == (model, method, storage))
        if (cells := [_mean(metric, runs, (model, method, storage, name)) for metric in PAPER])
    ]
    caption = (
        "M1, M2 and M4 in percent, M3 against the retrained model of the run; as Table 1 of arXiv 2410.16454. Mean over the runs, and the "
        "lowest and highest value."
    )
    return Table(caption, ("Model or method", "Storage arm", "Precision", *PAPER), lines, heads=3)


def _mean(metric: str, runs: Sequence[Run], place: tuple[str, str | None, str | None, str]) -> str:
    values = [value for run in runs if (value := run.value(metric, *place)) is not None]
    if not values:
        return "–"
    mean = number(metric, statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({number(metric, min(values))} to {number(metric, max(values))})"

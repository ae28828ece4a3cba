"""Tables in Markdown, and the results of several runs for the README: each number read from the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median

from unforgotten.records.methods import FORGET_TERMS, forget_term
from unforgotten.records.rows import Row, Run
from unforgotten.reports.labels import arm_label


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(map(line, rows))


def line(cells: Iterable[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median of values, with the lowest and the highest where they differ: 0.49 (0.43 to 0.55)."""
    numbers = (median(values), min(values), max(values))
    middle, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in numbers)  # + 0.0: no "-0"
    return middle if low == high else f"{middle} ({low} to {high})"


def survival_table(runs: Sequence[Run], what: str) -> str:
    """Return a table of one number a cell: a line a format, a column an arm and forget term.

    The least gain is that over runs and methods. M1 came back, or fell further down, where the 95 % interval of rho_M1
    (T16) lies above 0, or below. Formats and arms are those of the first run.

    Args:
        runs: runs of the same profile, of which each is a seed.
        what: quantity in the cells, a key of COUNTED.
    """
    columns = [(storage, term) for storage in runs[0].storages for term in FORGET_TERMS]
    head = " | ".join(f"{arm_label(s).column}, {term}" for s, term in columns)
    lines = [f"| {what} | {head} |", "| --- |" + " ---: |" * len(columns)]
    for name in runs[0].formats:
        lines.append(f"| {name} | {' | '.join(COUNTED[what](runs, *c, name) for c in columns)} |")
    return "\n".join(lines)


def returns(runs: Sequence[Run], storage: str, terms: Sequence[str], names: Sequence[str]) -> str:
    """Return in how many cases M1 came back, "x of y", over these forget terms and formats."""
    found = [intervals(runs, storage, term, name) for term in terms for name in names]
    return f"{sum(low > 0 for part in found for low, _ in part)} of {sum(map(len, found))}"


def _rows(runs: Sequence[Run], metric: str, storage: str, term: str, name: str) -> Iterator[Row]:
    for run in runs:
        for method in run.methods:
            row = run.get(metric, "unlearned", method, storage, name)
            if forget_term(method) == term and row is not None and row.value is not None:
                yield row


def _least_gain(runs: Sequence[Run], storage: str, term: str, name: str) -> str:
    values = [row.value for row in _rows(runs, "gain", storage, term, name) if row.value is not None]
    return f"{min(values):.2f}" if values else "–"


def intervals(runs: Sequence[Run], storage: str, term: str, name: str) -> list[tuple[float, float]]:
    """Return the 95 % interval of rho_M1 of every run and method of a forget term, where it has one."""
    rows = _rows(runs, "rho_M1", storage, term, name)
    return [row.interval for row in rows if row.interval]


def _back(runs: Sequence[Run], storage: str, term: str, name: str) -> str:
    return str(sum(low > 0 for low, _ in intervals(runs, storage, term, name)))


def _further_down(runs: Sequence[Run], storage: str, term: str, name: str) -> str:
    return str(sum(high < 0 for _, high in intervals(runs, storage, term, name)))


COUNTED: Mapping[str, Callable[[Sequence[Run], str, str, str], str]] = {
    "least gain": _least_gain,
    "M1 back": _back,
    "M1 further down": _further_down,
}
"""What a table of `survival_table` holds, one number a cell, by its name."""

"""The results of several runs as Markdown, for the README: each number read from the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unforgotten.records.rows import Row, Run

ARM_NAMES = {"fp32": "fp32 masters", "bf16": "bf16 parameters", "bf16-sr": "bf16, stochastic rounding"}


TERMS = ("GA", "NPO")  # forget terms; a method's name is one of them, or one and a retain term


def survival_table(runs: Sequence[Run]) -> str:
    """One line a format, one column an arm and forget term: the gain, and how often M1 came back or fell further.

    The gain is a range over runs and methods. Came back, fell further: the 95 % interval of rho_M1 (T16) lies above 0,
    or below. Formats and arms are those of the first run.
    """
    columns = [(storage, term) for storage in runs[0].storages for term in TERMS]
    head = " | ".join(f"{ARM_NAMES.get(s, s)}, {term}" for s, term in columns)
    lines = [f"| format | {head} |", "| --- |" + " --- |" * len(columns)]
    for name in runs[0].formats:
        cells = [f"{_gains(runs, *c, name)}; {_returns(runs, *c, name)}" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def returns(runs: Sequence[Run], storage: str, terms: Sequence[str], names: Sequence[str]) -> str:
    """In how many cases M1 came back, "x of y", over these forget terms and formats."""
    found = [_intervals(runs, storage, term, name) for term in terms for name in names]
    return f"{sum(low > 0 for part in found for low, _ in part)} of {sum(map(len, found))}"


def _rows(runs: Sequence[Run], metric: str, storage: str, term: str, name: str) -> Iterator[Row]:
    for run in runs:
        for method in run.methods:
            row = run.get(metric, "unlearned", method, storage, name)
            if method.split("_")[0] == term and row is not None and row.value is not None:
                yield row


def _gains(runs: Sequence[Run], storage: str, term: str, name: str) -> str:
    rows = _rows(runs, "gain", storage, term, name)
    values = [row.value for row in rows if row.value is not None]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "–"


def _returns(runs: Sequence[Run], storage: str, term: str, name: str) -> str:
    intervals = _intervals(runs, storage, term, name)
    back = sum(low > 0 for low, _ in intervals)
    further = sum(high < 0 for _, high in intervals)
    return f"{back} back, {further} down of {len(intervals)}"


def _intervals(runs: Sequence[Run], storage: str, term: str, name: str) -> list[tuple[float, float]]:
    rows = _rows(runs, "rho_M1", storage, term, name)
    return [row.interval for row in rows if row.interval]

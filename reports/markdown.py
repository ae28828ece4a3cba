"""The results of several runs as Markdown, for the README: each number read from the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unforgotten.reports.rows import Row, Run

ARM_NAMES = {"fp32": "fp32 masters", "bf16": "bf16 parameters"}


def survival_table(runs: Sequence[Run]) -> str:
    """One line a format: the range of the gain over runs and methods, and in how many of them M1 came back, by arm.

    Came back: the 95 % interval of rho_M1 (T16) lies above 0. Formats and arms are those of the first run.
    """
    storages = runs[0].storages
    arms = [ARM_NAMES.get(storage, storage) for storage in storages]
    head = [f"gain, {arm} | M1 comes back, {arm}" for arm in arms]
    lines = [f"| format | {' | '.join(head)} |", "| --- |" + " --- | --- |" * len(arms)]
    for name in runs[0].formats:
        cells = [f"{_gains(runs, s, name)} | {_returns(runs, s, name)}" for s in storages]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(runs: Sequence[Run], metric: str, storage: str, name: str) -> Iterator[Row]:
    for run in runs:
        for method in run.methods:
            row = run.get(metric, "unlearned", method, storage, name)
            if row is not None and row.value is not None:
                yield row


def _gains(runs: Sequence[Run], storage: str, name: str) -> str:
    values = [row.value for row in _rows(runs, "gain", storage, name) if row.value is not None]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "–"


def _returns(runs: Sequence[Run], storage: str, name: str) -> str:
    intervals = [row.interval for row in _rows(runs, "rho_M1", storage, name) if row.interval]
    return f"{sum(low > 0 for low, _ in intervals)} of {len(intervals)}"

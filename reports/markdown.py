"""The results of a run as Markdown, for the README: each number read from the rows."""

from __future__ import annotations

from unforgotten.reports.rows import Run

ARM_NAMES = {"fp32": "fp32 masters", "bf16": "bf16 parameters"}


def survival_table(run: Run) -> str:
    """One line a format: the range of the gain over the methods, and in how many of them M1 came back, by arm.

    Came back: the 95 % interval of rho_M1 (T16) lies above 0.
    """
    arms = [ARM_NAMES.get(storage, storage) for storage in run.storages]
    head = [f"gain, {arm} | M1 comes back, {arm}" for arm in arms]
    lines = [f"| format | {' | '.join(head)} |", "| --- |" + " --- | --- |" * len(arms)]
    for name in run.formats:
        cells = [f"{_gains(run, s, name)} | {_returns(run, s, name)}" for s in run.storages]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gains(run: Run, storage: str, name: str) -> str:
    values = [run.value("gain", "unlearned", m, storage, name) for m in run.methods]
    known = [v for v in values if v is not None]
    return f"{min(known):.2f} to {max(known):.2f}" if known else "–"


def _returns(run: Run, storage: str, name: str) -> str:
    rows = [run.get("rho_M1", "unlearned", m, storage, name) for m in run.methods]
    known = [row for row in rows if row is not None and row.value is not None and row.interval]
    count = sum(row.interval is not None and row.interval[0] > 0 for row in known)
    return f"{count} of {len(known)}"

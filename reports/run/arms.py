"""A run beside the same seed as it was computed before, as Markdown: `python -m unforgotten.reports.run.arms NEW OLD`.

Reads the rows of both folders, and writes NEW/table.md: a line for each method, arm and format that the new run has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from unforgotten.records.files import write_text
from unforgotten.records.rows import Row, Run, read_run

HEADS = ("method", "arm", "format", "steps", "forget loss", "gain", "forget loss of Q", "M1", "M1 of Q", "M1 back")
METRICS = ("forget_loss", "M1")


def arms_table(new: Run, old: Run) -> str:
    """Return the two runs side by side as Markdown, a line for each method, arm and format that the new run has.

    A cell says what the new run does, and behind a stroke what the old one does; "–" where it has no such arm. Steps, forget loss and M1 are those of the unlearned model before quantization, then those after it. "back": the
    interval of rho_M1 (T16) lies above 0, "down": below it.
    """
    if deep := [run.label for run in (new, old) if run.depths and run.depth is None]:
        raise ValueError(f"runs must be without unlearning.depths to stand side by side, got {deep[0]}")
    lines = [
        f"How the new run computed: {_computed(new)}. The old one: {_computed(old)}.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|" + " --- |" * len(HEADS),
    ]
    lines += [f"| {' | '.join(cells)} |" for cells in _lines(new, old)]
    return "\n".join(lines) + "\n"


def _lines(new: Run, old: Run) -> Iterator[tuple[str, ...]]:
    for method in new.methods:
        for storage in new.storages:
            for name in new.formats:
                pairs = zip(_cells(new, method, storage, name), _cells(old, method, storage, name), strict=True)
                yield (method, storage, name, *(f"{one} / {other}" for one, other in pairs))


def _cells(run: Run, method: str, storage: str, name: str) -> tuple[str, ...]:
    def of(metric: str, format_name: str) -> Row | None:
        return run.get(metric, "unlearned", method, storage, format_name)

    whole, memory = (of(metric, "none") for metric in METRICS)
    after, memory_after = (of(metric, name) for metric in METRICS)
    back = of("rho_M1", name)
    return (
        "–" if whole is None else str(whole.steps),
        _number(whole, 2),
        _number(of("gain", name), 3),
        _number(after, 2),
        _number(memory, 1),
        _number(memory_after, 1),
        "–" if back is None else _side(back),
    )


def _number(row: Row | None, digits: int) -> str:
    return "–" if row is None or row.value is None else f"{row.value:.{digits}f}"


def _side(row: Row) -> str:
    if row.bounds is None:
        return "undefined"
    low, high = row.bounds
    return "back" if low > 0 else "down" if high < 0 else "neither"


def _computed(run: Run) -> str:
    """Return a run's processor and how its products were computed, as far as the rows say."""
    said = dict.fromkeys(_said(row) for row in run.rows if row.model == "unlearned")
    return f"{run.rows[0].processor or 'processor not recorded'}; {'; '.join(said)}"


def _said(row: Row) -> str:
    how = row.products or "not recorded"
    rounding = f", rounded {row.rounding}" if row.rounding == "stochastic" else ""
    return f"{row.storage}: products {how}{rounding}"


def main(folders: Sequence[str]) -> None:
    """Write the table of two folders into the first."""
    new, old = map(Path, folders)
    write_text(new / "table.md", arms_table(read_run(new), read_run(old)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The laws of T6 to T8 against simulated weights, as Markdown: `python -m unforgotten.reports.studies.flip_laws FOLDER`.

Reads FOLDER/laws.jsonl, which the nightly test of verification/test_laws.py writes, and writes FOLDER/table.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from unforgotten.records.files import write_text

CASE = ("grid", "format", "density", "delta_over_std")


def law_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a case and, above, the largest share of what is allowed.

    A cell: what was measured, and the law's distance in standard errors and as a share of what the test allows.
    """
    worst = max(rows, key=lambda r: r["gap"] / r["allowed"])
    place = ", ".join(str(worst[key]) for key in CASE)
    quantities = tuple(dict.fromkeys(r["quantity"] for r in rows))
    heads = [f"{q}: measured, gap / stderr, gap / allowed" for q in quantities]
    share, errors = worst["gap"] / worst["allowed"], worst["gap"] / worst["stderr"]
    lines = [
        f"Largest share of the allowed: {share:.2f} ({worst['quantity']}; {place}), {errors:.1f} standard errors.",
        f"{len(rows)} rows of {worst['weights']:,} weights.",
        "",
        f"| {' | '.join((*CASE, *heads))} |",
        "|" + " --- |" * (len(CASE) + len(heads)),
    ]
    for case, group in groupby(rows, key=lambda r: tuple(r[key] for key in CASE)):
        cells = [f"{r['measured']:.5f}, {r['gap'] / r['stderr']:.2f}, {r['gap'] / r['allowed']:.2f}" for r in group]
        lines.append(f"| {' | '.join((*map(str, case), *cells))} |")
    return "\n".join(lines) + "\n"


def read_laws(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of the flip laws from `folder/laws.jsonl`."""
    lines = (folder / "laws.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    given = Path(sys.argv[1])
    write_text(given / "table.md", law_table(read_laws(given)))

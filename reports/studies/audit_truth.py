"""How often the audit's verdict was right, as Markdown: `python -m unforgotten.reports.studies.audit_truth FOLDER`.

Reads FOLDER/rows.jsonl, which `experiments.studies.audit_truth` and `audit_truth_constructed` write, and writes FOLDER/table.md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import write_text

Row = dict[str, Any]
WORDS = ("survives", "undone", "undecided")
SETS = {
    "constructed": "truth by construction; all three legs, from checkpoints on disk",
    "whole": "behaviour leg on all items; truth from the openings of the passages, which no metric of the leg scores",
    "output": "output leg alone; the same truth",
    "halves": "behaviour leg on half of the passages; truth from M1 and M2 on the other half, twice a pair",
}
HEADS = ("set", "truth", "pairs", *(f"verdict {word}" for word in WORDS), "right of decided", "confident errors")


def truth_table(rows: Sequence[Row]) -> str:
    """Return Markdown that counts verdicts by set and truth, then lists every confident error."""
    lines = [
        (
            "A truth is the largest rho (T16) over formats: `undone` from 1/3 on, else `survives`; `border` where its own "
            "interval holds 1/3, so that the truth is itself uncertain. An error is a verdict `survives` of a truth "
            "`undone`, or the reverse; `undecided` is neither right nor an error."
        ),
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in SETS.items()),
        "",
        *_counts("All pairs", rows),
        "",
        *_counts("Pairs that were not looked at before the rule was final", [r for r in rows if not r["looked_at"]]),
        "",
        *_errors(rows),
    ]
    return "\n".join(lines) + "\n"


def _counts(title: str, rows: Sequence[Row]) -> list[str]:
    lines = [f"## {title}", "", f"| {' | '.join(HEADS)} |", "|" + " --- |" * len(HEADS)]
    for name in SETS:
        for truth in ("survives", "undone"):
            for border in (False, True):
                group = [r for r in rows if r["set"] == name and r["truth"] == truth and r["clear"] is not border]
                if group:
                    lines.append(_line(name, f"{truth}{', border' if border else ''}", group))
    decided = [r for r in rows if r["truth"] and r["verdict"] != "undecided"]
    return [*lines, _line("all", "known", [r for r in rows if r["truth"]])] if decided else lines


def _line(name: str, truth: str, group: Sequence[Row]) -> str:
    said = Counter(r["verdict"] for r in group)
    decided, right = len(group) - said["undecided"], sum(r["verdict"] == r["truth"] for r in group)
    cells = (name, truth, len(group), *(said[w] for w in WORDS), f"{right} of {decided}", decided - right)
    return f"| {' | '.join(map(str, cells))} |"


def _errors(rows: Sequence[Row]) -> list[str]:
    wrong = [r for r in rows if r["truth"] and r["verdict"] not in ("undecided", r["truth"])]
    unknown = sum(r["truth"] is None for r in rows)
    lines = ["## Confident errors", ""]
    lines += [
        f"- {r['set']}: {r['run']}, {r['method']} {r['storage']}: `{r['verdict']}`, truth `{r['truth']}` "
        f"(rho {r['rho']:.2f} [{r['interval'][0]:.2f}, {r['interval'][1]:.2f}], {r['where']}; "
        f"{'clear' if r['clear'] else 'border'})"
        for r in wrong
    ] or ["None."]
    return [*lines, "", f"Left out: {unknown} rows without a truth, as too little was removed to tell."]


def read_truth(folder: Path) -> list[Row]:
    """Read the rows of verdicts and truths from `folder/rows.jsonl`."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    given = Path(sys.argv[1])
    write_text(given / "table.md", truth_table(read_truth(given)))

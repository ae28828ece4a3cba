"""What the loop costs beside that of released code, as Markdown: from the rows that `experiments/studies/loop_cost.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.reports.labels import spread

PARTS = {"unlearn": "unlearning", "evaluate": "M1-M4 and the losses", "both": "both"}


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": loop_table(read_json_lines(folder / "rows.jsonl"))}


def loop_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the ratios of times, and how far what both loops find is apart."""
    first = rows[0]
    changed = ", ".join(f"{name}={value}" for name, value in first["set"].items())
    where = f"`{first['profile']}`" + (f" ({changed})" if changed else "")
    what = f"One NPO_KLR of {first['steps']} steps on {where}, then M1-M4 with {first['prompts']} prompts"
    lines = [
        f"{what}; {first['threads']} threads of torch, on {first['processor']}.",
        "The plain loop runs the reference model in every step and measures one text at a time, as released code does.",
        f"Ratios of times of one round, plain over ours: median (lowest to highest) of {len(first['ratios'])} rounds.",
        "",
        "| part | ratio |",
        "| --- | ---: |",
    ]
    lines += [f"| {PARTS[r['of']]} | {spread(r['ratios'])} |" for r in rows if "ratios" in r]
    lines += ["", "| metric | mean | largest difference of an item |", "| --- | ---: | ---: |"]
    lines += [f"| {r['of']} | {r['mean']:.3f} | {r['difference']:.1e} |" for r in rows if "mean" in r]
    return "\n".join(lines) + "\n"

"""What our quantizers cost beside bitsandbytes, as Markdown: from the rows that `experiments/studies/quantizer_cost.py` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.reports.labels import spread


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": cost_table(read_json_lines(folder / "rows.jsonl"))}


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each format and path: its time over that of bitsandbytes, and that of `bound` over loading scipy."""
    first = rows[0]
    rounds, shape = len(first["ratios"]), " x ".join(map(str, first["shape"]))
    lines = [
        f"Quantize and dequantize {shape} float32 weights, {first['threads']} threads of torch, on {first['processor']}.",
        f"Ratios of times of one round: median (lowest to highest) of {rounds} rounds.",
        "",
        "| what | over | format | ratio |",
        "| --- | --- | --- | ---: |",
    ]
    lines += [f"| {r['of']} | {r['over']} | {r['format'] or '–'} | {spread(r['ratios'])} |" for r in rows]
    return "\n".join(lines) + "\n"

"""What an audit costs: `table.md` from `rows.jsonl`, which `experiments/studies/audit_cost.py` writes.

In go the rows, each with the seconds of every task in every round on one machine, and its peak memory; out comes Markdown
with a section for each processor and path of the kernel, a line for each question and a column for each case of CASES:

    | one format, share of the speed of reading, one thread | ≥ 0.5 | 0.248 (0.246 to 0.262) | … |
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.audit_cost import COLD
from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE

Row = dict[str, Any]
SEVENTY_BILLION = 70e9
HEADS = ("", "wanted", "2 x 2 GiB, small update", "2 x 2 GiB, large update", "2 x 8 GiB, small update")
CASES = ((2, "small"), (2, "large"), (8, "small"))


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": cost_table(read_json_lines(folder / ROWS_FILE))}


def cost_table(rows: Sequence[Row]) -> str:
    """Return one table for each processor and path of the kernel, in the order of the rows."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["machine"], row["path"], row["compiled_for"]), []).append(row)
    parts = [
        f"## Path {path}, compiled for {target}, on {machine}\n\n{_table(own)}"
        for (machine, path, target), own in groups.items()
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    """Return ratios as medians (lowest to highest) over rounds, memory, and the time of 70 billion weights."""
    by_case = {(r["gib"], r["update"]): r for r in rows}
    found = [by_case.get(case) for case in CASES]
    some = next(r for r in found if r is not None)
    cores, groups = some["cores"], some["groups"]
    table = [
        ("one format, times the weights per second of bitsandbytes", "≥ 25", _against_yardstick(cores)),
        ("one format, share of the speed of reading, one thread", "≥ 0.5", _share("read/1", f"audit one/{cores}")),
        (
            f"one format, share of the speed of reading, {cores} threads",
            "",
            _share(f"read/{cores}", f"audit one/{cores}"),
        ),
        (
            "one format, share of the speed of reading from disk",
            "",
            _share(f"read {COLD}/1", f"audit one {COLD}/{cores}"),
        ),
        ("reading, one thread, GB a second", "", _rate("read/1")),
        ("reading from disk, one thread, GB a second", "", _rate(f"read {COLD}/1")),
        (
            "codebook formats, times the time of one",
            "≤ 5" if some["path"] == "avx2" else "≤ 4",
            _share(f"audit codebooks/{cores}", f"audit one/{cores}"),
        ),
        ("default formats, times the time of one", "", _share(f"audit defaults/{cores}", f"audit one/{cores}")),
        (f"one format, one process, times the time of {cores}", "", _share("audit one/1", f"audit one/{cores}")),
        ("SHA-256 of both files, times the time of one format", "", _share("sha256/1", f"audit one/{cores}")),
        ("one format, million weights a second", "", _speed(f"audit one/{cores}")),
        ("peak memory, one format, one process, MiB", "≤ 1024", _peak("audit one/1")),
        (f"peak memory, one format, {cores} processes, MiB", "≤ 1024", _peak(f"audit one/{cores}")),
        (f"peak memory, default formats, {cores} processes, MiB", "≤ 1024", _peak(f"audit defaults/{cores}")),
        ("70 billion weights, one format, minutes", "", _seventy(f"audit one/{cores}")),
    ]
    lines = [
        (
            "Medians (lowest to highest) of the ratios of single rounds, all tasks in turn in one process, files in "
            f"the page cache unless it says from disk, {cores} cores ({some['machine']}). An audit here is its weights leg on adaptive and on "
            f"fixed grids, on {cores} processes that are forked anew each time; reading goes into a MiB that is used again; "
            f"bitsandbytes quantizes, dequantizes and compares {some['yardstick_weights']:,} of the weights, "
            "read from the same files. Memory adds up the resident pages of all processes, those that they share "
            "once for each. The large model is the speed of the pair carried on, as if its files were in the page "
            "cache: a disk that is slower than the audit decides instead."
        ),
        "",
        *(f"- **{name}**: {', '.join(formats)}." for name, formats in groups.items()),
        "- **small update**: Gaussian, 1e-4 on weights of 0.02: in bfloat16 two weights in three move, and one scale in five.",
        "- **large update**: ten times that: nearly every weight and scale moves.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|" + " --- |" * len(HEADS),
    ]
    for title, wanted, cell in table:
        cells = [cell(row) if row else "" for row in found]
        lines.append(f"| {' | '.join((title, wanted, *cells))} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _share(above: str, below: str) -> Any:
    """Return a function that writes a row's cell: the time of `above` over that of `below`, round by round."""

    def cell(row: Row) -> str:
        seconds = row["seconds"]
        if above not in seconds or below not in seconds:
            return ""
        return _spread([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])

    return cell


def _against_yardstick(cores: int) -> Any:
    def cell(row: Row) -> str:
        seconds, name = row["seconds"], f"bitsandbytes/{cores}"
        if name not in seconds:
            return ""
        share = row["weights"] / row["yardstick_weights"]
        pairs = zip(seconds[name], seconds[f"audit one/{cores}"], strict=True)
        return _spread([share * theirs / ours for theirs, ours in pairs])

    return cell


def _speed(name: str) -> Any:
    return lambda row: _spread([row["weights"] / s / 1e6 for s in row["seconds"][name]])


def _rate(name: str) -> Any:
    def cell(row: Row) -> str:
        seconds = row["seconds"].get(name)
        return _spread([sum(row["file_bytes"]) / s / 1e9 for s in seconds]) if seconds else ""

    return cell


def _seventy(name: str) -> Any:
    return lambda row: _spread([s * SEVENTY_BILLION / row["weights"] / 60 for s in row["seconds"][name]])


def _peak(name: str) -> Any:
    return lambda row: f"{row['peak_mib'][name]}"

"""The result of an audit for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unforgotten.audit.findings.prediction import PredictionRow
from unforgotten.audit.findings.sentences import share
from unforgotten.audit.outputs.result import HTML_FILE, AuditResult
from unforgotten.audit.outputs.result_rows import FormatRow

PREDICTED = ("gain of", "theory", "over the range of lr", "from the seen motion", "measured")
COLUMNS = ("format", "grid", "codes equal", "flips", "expected", "gain", "cosine")


def print_summary(result: AuditResult, out: Path | None = None, console: Console | None = None) -> None:
    """Print table, verdict and reasons.

    Args:
        result: result of the audit.
        out: directory of its files, if they were written.
        console: console to print to, standard output if none is given. Sentences are broken only for a terminal.
    """
    console = console or Console()
    whole_lines = not console.is_terminal
    verdict = result["verdict"]
    console.print(
        Text(f"{result['target']['source']} → {result['unlearned']['source']}", "bold"), soft_wrap=whole_lines
    )
    console.print(Text(_coverage(result)))
    console.print(_table(result["formats"]))
    if any(row["inputs"] for row in result["prediction"]):
        console.print(_predictions(result["prediction"]))
    console.print(Text(f"Verdict: {verdict['overall']} · weights: {verdict['legs']['weights']}", "bold"))
    for reason in verdict["reasons"]:
        console.print(Text(f"• {reason}"), soft_wrap=whole_lines)
    for note in result["notes"]:
        console.print(Text(f"note: {note}", "dim"), soft_wrap=whole_lines)
    if out is not None:
        console.print(Text(f"Report: {out / HTML_FILE}"), soft_wrap=True)


def _table(rows: list[FormatRow]) -> Table:
    table = Table(*COLUMNS)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["format"],
            row["grid"],
            share(1 - row["code_flips"] / row["weights"]),
            f"{row['code_flips']:,}",
            number(row["expected_flips"], 0),
            number(row["gain"], 2),
            number(row["cosine"], 3),
        )
    return table


def _coverage(result: AuditResult) -> str:
    unchanged = result["storage"]["unchanged_fraction"]
    seen = f"{result['coverage']['weights']:,} weights in {result['coverage']['tensors']} tensors"
    if unchanged is None:
        return f"{seen}, quantized already: their codes are counted"
    how = f"{result['computed']['path']} on {result['computed']['processor']}"
    return f"{seen}, {share(unchanged)} unchanged by the update; computed by {how}"


def _predictions(rows: list[PredictionRow]) -> Table:
    """Return what theory alone expects, beside the measured gain."""
    table = Table(*PREDICTED)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        span = f"{number(row['predicted_low'], 2)} to {number(row['predicted_high'], 2)}"
        table.add_row(
            row["format"],
            number(row["predicted_gain"], 2),
            span if row["predicted_low"] is not None else "–",
            number(row["motion_gain"], 2),
            number(row["measured_gain"], 2),
        )
    return table


def number(x: float | None, digits: int) -> str:
    """Return a ratio with `digits` decimals, or a dash where there is none."""
    return "–" if x is None else f"{x:,.{digits}f}"

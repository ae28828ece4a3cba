"""The result of an audit for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unforgotten.audit.findings import share
from unforgotten.audit.result import HTML_FILE, AuditResult
from unforgotten.audit.rows import FormatRow

COLUMNS = ("format", "grid", "codes equal", "flips", "expected", "gain", "cosine")


def print_summary(
    result: AuditResult, out: Path | None = None, console: Console | None = None
) -> None:
    """Print table, verdict and reasons.

    Args:
        result: of the audit.
        out: where its files are, if they were written.
        console: standard output if none is given. Sentences are broken only for a terminal.
    """
    console = console or Console()
    whole_lines = not console.is_terminal
    verdict = result["verdict"]
    console.print(
        Text(f"{result['target']['source']} → {result['unlearned']['source']}", "bold"),
        soft_wrap=whole_lines,
    )
    coverage = result["coverage"]
    console.print(
        Text(
            f"{coverage['weights']:,} weights in {coverage['tensors']} tensors, "
            f"{share(result['storage']['unchanged_fraction'])} unchanged by the update"
        )
    )
    console.print(_table(result["formats"]))
    console.print(
        Text(f"Verdict: {verdict['overall']} · weights: {verdict['legs']['weights']}", "bold")
    )
    for reason in verdict["reasons"]:
        console.print(Text(f"• {reason}"), soft_wrap=whole_lines)
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
            f"{row['expected_flips']:,.0f}",
            number(row["gain"], 2),
            number(row["cosine"], 3),
        )
    return table


def number(x: float | None, digits: int) -> str:
    """A ratio with `digits` decimals, or a dash where there is none."""
    return "–" if x is None else f"{x:,.{digits}f}"

"""The result of an audit for a terminal: the answer first, and nothing cut at 60 columns.

Verdict and legs, one row a format, the reasons, what would decide it, and last why the command ends as it does. All else is
on the page. Where the table does not fit, each format takes some lines of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unforgotten.audit.findings.sentences import share
from unforgotten.audit.outputs.answer import Answer, FormatAnswer, Tone, Trail, answer
from unforgotten.audit.outputs.result import HTML_FILE, AuditResult

STYLES: Mapping[Tone, str] = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}

ANY_WIDTH = 1000  # of a terminal in which no table would be cut


def print_summary(
    result: AuditResult, out: Path | None = None, console: Console | None = None, *, last: str | None = None
) -> None:
    """Print the answer.

    Args:
        result: result of the audit.
        out: directory of its files, if they were written.
        console: console to print to, standard output if none is given. Sentences are broken only for a terminal.
        last: last line, which says why the command ends with its code.
    """
    console = console or Console()
    found = answer(result)
    for line in _head(found):
        _say(console, line)
    console.print()
    _print_rows(console, found)
    console.print()
    for text in _body(result, found):
        _say(console, Text(text))
    if out is not None:
        console.print(Text(f"Report: {out / HTML_FILE}"), soft_wrap=True)
    if last is not None:
        _say(console, Text(last))


def _say(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=not console.is_terminal)


def _head(found: Answer) -> list[Text]:
    legs = " · ".join(f"{leg}: {word}" for leg, word in found.legs)
    lines = [Text(f"Verdict: {found.overall}", STYLES[found.tone]), Text(legs)]
    if found.metrics:
        lines.append(Text(f"{', '.join(found.metrics)} below: target → unlearned → unlearned and quantized", "dim"))
    return lines


def _body(result: AuditResult, found: Answer) -> list[str]:
    lines = [found.models] if found.models else []
    lines += [f"• {reason}" for reason in found.reasons]
    lines += [f"Note: {note}" for note in found.notes]
    lines += [f"Items: {found.items}"] if found.items else []
    lines += found.next_steps
    lines.append(f"Audited: {result['target']['source']} → {result['unlearned']['source']}: {_coverage(result)}.")
    return lines


def _print_rows(console: Console, found: Answer) -> None:
    table = _table(found)
    if console.measure(table, options=console.options.update(max_width=ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    for row in found.rows:
        parts = [
            f"gain {row.gain}",
            *([f"functional gain {row.functional}"] if found.functional else []),
            *(f"{trail.metric} {_tight(trail)}" for trail in row.trails),
        ]
        parts += [f"recovered {row.recovered}"] if found.metrics else []
        _say(console, Text.assemble((f"{row.format}: ", ""), (row.word, STYLES[row.tone])))
        console.print(Padding(Text(", ".join(parts)), (0, 0, 0, 2)))


def _table(found: Answer) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    names = [
        "format",
        *found.metrics,
        *(["recovered"] if found.metrics else []),
        "gain",
        *(["functional gain"] if found.functional else []),
        "says",
    ]
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in found.rows:
        table.add_row(*_cells(found, row))
    return table


def _cells(found: Answer, row: FormatAnswer) -> list[Text]:
    trails = [Text(_tight(trail)) for trail in row.trails]
    recovered = [Text(row.recovered)] if found.metrics else []
    functional = [Text(row.functional)] if found.functional else []
    return [Text(row.format), *trails, *recovered, Text(row.gain), *functional, Text(row.word, STYLES[row.tone])]


def _tight(trail: Trail) -> str:
    return str(trail).replace(" ", "")


def _coverage(result: AuditResult) -> str:
    unchanged = result["storage"]["unchanged_fraction"]
    seen = f"{result['coverage']['weights']:,} weights in {result['coverage']['tensors']} tensors"
    if unchanged is None:
        return f"{seen}, quantized already: their codes are counted"
    how = f"{result['computed']['path']} on {result['computed']['processor']}"
    return f"{seen}, {share(unchanged)} unchanged by the update; computed by {how}"


def number(x: float | None, digits: int) -> str:
    """Return a ratio with `digits` decimals, or a dash where there is none."""
    return "–" if x is None else f"{x:,.{digits}f}"

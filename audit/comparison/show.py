"""A comparison as a table: for a terminal, in Markdown, as a page; and as CSV, one line a row with plain numbers.

print_comparison(found)
write_comparison(found, Path("compared.html"))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unforgotten.audit.comparison.compare import MOST_NAMED, Comparison, Ranking, score_text
from unforgotten.audit.comparison.row import ComparedRow, Range
from unforgotten.audit.outputs.answer import NO_VALUE, TONES, Tone, gain_text
from unforgotten.audit.outputs.model_card import escaped
from unforgotten.audit.outputs.page import page_environment
from unforgotten.audit.outputs.summary import ANY_WIDTH, STYLES
from unforgotten.records.files import write_text

HEADER = ("audit", "format", "says", "gain", "forgotten", "recovered", "kept", "M4 kept", "score")
LEGEND = (
    "forgotten: share that unlearning took from the metric that comes back most; recovered: share of it that the format "
    "brings back; kept: 1 - recovered; M4 kept: of the target's, unlearned → unlearned and quantized; score: kept per point "
    "of M4 lost, a point being 1 % of the target's. Intervals of 95 %."
)
RANGES = ("recovered", "kept", "lost", "score")
PLAIN = ("audit", "format", "word", "gain", "gain_stderr", "metric", "forgotten")
KEPT = ("retained", "retained_unlearned", "retained_quantized", "broken", "why")


class Shown(NamedTuple):
    """A ranking as text."""

    title: str
    sentence: str
    rows: list[tuple[ComparedRow, tuple[str, ...]]]
    reasons: list[str]


def shown(found: Ranking) -> Shown:
    """Return a ranking as text: its cells by HEADER, and why rows have no score."""
    rows = [(row, _cells(row)) for row in found["rows"]]
    return Shown(found["of"] or "", found["sentence"], rows, list(_reasons(found["rows"])))


def _cells(row: ComparedRow) -> tuple[str, ...]:
    return (
        row["audit"],
        row["format"],
        "retain lost" if row["broken"] else row["word"],
        gain_text(row["gain"], row["gain_stderr"]),
        NO_VALUE if row["forgotten"] is None else f"{row['metric']} {_percent(row['forgotten'])} %",
        _range(row["recovered"]),
        _range(row["kept"]),
        _retained(row),
        NO_VALUE if row["score"] is None else score_text(row["score"]),
    )


def _percent(x: float | None) -> str:
    return "?" if x is None else f"{100 * x:.0f}"


def _range(found: Range | None) -> str:
    if found is None:
        return NO_VALUE
    return f"{_percent(found['value'])} % [{_percent(found['low'])}, {_percent(found['high'])}]"


def _retained(row: ComparedRow) -> str:
    if row["retained"] is None:
        return NO_VALUE
    name = "" if row["retained"] == "M4" else f"{row['retained']} "
    return f"{name}{_percent(row['retained_unlearned'])} → {_percent(row['retained_quantized'])} %"


def _reasons(rows: Sequence[ComparedRow]) -> Iterator[str]:
    """Yield why rows have no score, once for those that share it."""
    by_why: dict[str, list[str]] = {}
    for row in rows:
        if row["why"] is not None:
            by_why.setdefault(row["why"], []).append(f"{row['audit']} in {row['format']}")
    for why, names in by_why.items():
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        yield f"No score: {', '.join(names[:MOST_NAMED])}{more}: {why}."


def print_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print warnings first, then for each ranking who won, its rows, and why some have no score."""
    console = console or Console()

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=not console.is_terminal)

    for warning in found["warnings"]:
        say(warning, STYLES["open"])
    for one in map(shown, found["rankings"]):
        if one.title:
            say(one.title, "bold")
        say(one.sentence)
        _print_rows(console, one)
        for reason in one.reasons:
            say(f"• {reason}")
        console.print()
    say(LEGEND, "dim")


def _print_rows(console: Console, one: Shown) -> None:
    """Print a table, or where it does not fit some lines a row."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in HEADER:
        table.add_column(name, no_wrap=True)
    for row, cells in one.rows:
        table.add_row(*(Text(cell, STYLES[_tone(row)] if i == 2 else "") for i, cell in enumerate(cells)))
    if console.measure(table, options=console.options.update(max_width=ANY_WIDTH)).maximum <= console.width:
        console.print(table)
        return
    for row, (audit, name, word, *rest) in one.rows:
        told = [f"{title} {cell}" for title, cell in zip(HEADER[3:], rest, strict=True) if cell != NO_VALUE]
        console.print(Text.assemble(f"{audit} in {name}: ", (word, STYLES[_tone(row)])), soft_wrap=True)
        console.print(Text(f"  {', '.join(told)}"), soft_wrap=not console.is_terminal)


def _tone(row: ComparedRow) -> Tone:
    return "bad" if row["broken"] else TONES.get(row["word"], "open")


def to_markdown(found: Comparison) -> str:
    """Return the comparison in Markdown; names are escaped."""
    lines = [f"**{escaped(warning)}**\n" for warning in found["warnings"]]
    for one in map(shown, found["rankings"]):
        lines += [f"## {escaped(one.title)}\n"] if one.title else []
        lines += [f"{escaped(one.sentence)}\n", _line(HEADER), _line(["---"] * len(HEADER))]
        lines += [_line([escaped(cell) for cell in cells]) for _, cells in one.rows]
        lines += ["", *(f"- {escaped(reason)}" for reason in one.reasons), ""]
    return "\n".join([*lines, LEGEND, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def to_html(found: Comparison) -> str:
    """Return the comparison as a page that needs nothing but itself; every name is escaped."""
    template = page_environment("unforgotten.audit").get_template("comparison.html.j2")
    rankings = [shown(one) for one in found["rankings"]]
    return template.render(c=found, rankings=rankings, header=HEADER, legend=LEGEND, tone=_tone)


def to_csv(found: Comparison) -> str:
    """Return one line a row, in full digits; what has no value is empty."""
    stream = io.StringIO()
    ends = [f"{name}{end}" for name in RANGES for end in ("", "_low", "_high")]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["ranking", *PLAIN, *KEPT, *ends, "winner"])
    for one in found["rankings"]:
        for row in one["rows"]:
            values: Mapping[str, object] = row
            ranges = [values[name] for name in RANGES]
            cells = [part for r in ranges for part in (r.values() if isinstance(r, dict) else (None, None, None))]
            won = one["winner"] == {"audit": row["audit"], "format": row["format"]}
            writer.writerow([one["of"], *(values[name] for name in (*PLAIN, *KEPT)), *cells, won])
    return stream.getvalue()


WRITERS: Mapping[str, Callable[[Comparison], str]] = {".html": to_html, ".csv": to_csv, ".md": to_markdown}


def check_out(file: Path) -> None:
    """Refuse a file whose ending is not of WRITERS."""
    if file.suffix not in WRITERS:
        raise ValueError(f"--out must end with one of {', '.join(WRITERS)}, got {str(file)!r}")


def write_comparison(found: Comparison, file: Path) -> None:
    """Write the comparison as the ending of the file says, whole or not at all.

    Raises:
        ValueError: the ending is unknown.
    """
    check_out(file)
    write_text(file, WRITERS[file.suffix](found))

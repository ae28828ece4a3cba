"""Several audits in one comparison: rows by score, and a winner where there is one.

    found = compare([Path("audits/npo"), Path("audits/ga")], by="format")
    found["rankings"][0]["sentence"]

All rows are one ranking, or one a format (which audit does best in it), or one an audit (which format keeps it best).

Audits of different targets or on different items are not comparable, see `comparable`: a warning says so first, the table is
made all the same, and no winner is named among them. Each is measured against its own target, so a table over
checkpoints still can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypedDict, cast, get_args

from unforgotten.audit.comparison.comparable import differences, doubts, numbers
from unforgotten.audit.comparison.read import Compared, read_compared
from unforgotten.audit.comparison.row import ComparedRow, Range, is_free, row_of

SCHEMA = "unforgotten.comparison/1"
By = Literal["all", "audit", "format"]
MOST_NAMED = 4


class ComparedAudit(TypedDict):
    """What was compared: its name, its file, which target, which benchmark, and on which items of it."""

    audit: str
    file: str
    target: str
    benchmark: str | None
    items: dict[str, int]
    items_sha256: str | None


class Winner(TypedDict):
    """The row that won."""

    audit: str
    format: str


class Ranking(TypedDict):
    """Rows by score, those without one last; `of` is the format or audit that they share."""

    of: str | None
    winner: Winner | None
    sentence: str
    rows: list[ComparedRow]


class Comparison(TypedDict):
    """The object of `unforgotten compare --json`."""

    schema: str
    version: str
    by: By
    audits: list[ComparedAudit]
    warnings: list[str]
    rankings: list[Ranking]


def compare(paths: Sequence[Path], by: str = "all") -> Comparison:
    """Compare audits.

    Args:
        paths: folders of audits, `audit.json` or `judged.json`.
        by: "all", "audit" or "format": what the rows of a ranking share.

    Raises:
        ValueError: `by` is another word, or a path is none of these; one line.
    """
    if by not in get_args(By):
        raise ValueError(f"--by must be one of {', '.join(get_args(By))}, got {by!r}")
    audits = read_compared(paths)
    rows = [_row(one, name) for one in audits for name in one.formats]
    groups: dict[str | None, list[ComparedRow]] = {}
    for row in rows:
        groups.setdefault(_group(by, row), []).append(row)
    ranked = {of: _among(audits, group) for of, group in groups.items()}
    warnings = [*differences(audits), *dict.fromkeys(line for group in ranked.values() for line in doubts(group))]
    return Comparison(
        schema=SCHEMA,
        version=version("unforgotten"),
        by=cast("By", by),
        audits=[_compared(one) for one in audits],
        warnings=warnings,
        rankings=[ranking(of, group, comparable=not differences(ranked[of])) for of, group in groups.items()],
    )


def _among(audits: Sequence[Compared], rows: Sequence[ComparedRow]) -> list[Compared]:
    names = {row["audit"] for row in rows}
    return [one for one in audits if one.name in names]


def _group(by: str, row: ComparedRow) -> str | None:
    return {"audit": row["audit"], "format": row["format"]}.get(by)


def _row(one: Compared, name: str) -> ComparedRow:
    try:
        return row_of(one, name)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{one.source}: must hold all of an audit, got none of {error}") from None


def _compared(one: Compared) -> ComparedAudit:
    leg = one.behaviour
    return ComparedAudit(
        audit=one.name,
        file=str(one.source),
        target=one.target,
        benchmark=None if leg is None else leg["benchmark"],
        items=numbers(leg),
        items_sha256=None if leg is None else leg.get("items_sha256"),
    )


def ranking(of: str | None, rows: Sequence[ComparedRow], *, comparable: bool = True) -> Ranking:
    """Rank rows by score; name a winner only where its interval lies above those of all others.

    The intervals are of 95 %, one row at a time, and not corrected for the number of rows.
    """
    ordered = sorted(rows, key=_place)
    winner, sentence = _winner(ordered, comparable=comparable)
    won = None if winner is None else Winner(audit=winner["audit"], format=winner["format"])
    return Ranking(of=of, winner=won, sentence=sentence, rows=ordered)


def _place(row: ComparedRow) -> tuple[int, float]:
    if row["score"] is not None:
        return 0, -row["score"]["value"]
    return (1, 0.0) if is_free(row) else (2, 0.0)


def _winner(rows: Sequence[ComparedRow], *, comparable: bool) -> tuple[ComparedRow | None, str]:
    scored = [(row, row["score"]) for row in rows if row["score"] is not None]
    free = [row for row in rows if is_free(row)]
    if not comparable:
        return None, "No winner: the audits are not comparable."
    if free:
        return None, f"No winner by score: {_named(free)} kept forgetting and lost no M4, which no score can rank."
    if not scored:
        return None, "No winner: no row has a score."
    (first, best), *others = scored
    if not others:
        return None, f"No winner: {_named([first])} alone has a score."
    tied = [row for row, score in others if _overlap(best, score)]
    if tied:
        return None, f"No winner: {_named([first, *tied])} cannot be told apart, for their intervals overlap."
    second, next_best = others[0]
    return first, (
        f"Winner: {_named([first])} ({first['word']}), {score_text(best)} of the forgetting kept a point of M4 lost; "
        f"next {_named([second])}, {score_text(next_best)}."
    )


def _overlap(first: Range, other: Range) -> bool:
    return other["high"] is None or (first["low"] or 0.0) <= other["high"]


def _named(rows: Sequence[ComparedRow]) -> str:
    names = [f"{row['audit']} in {row['format']}" for row in rows]
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:MOST_NAMED])} and {more} more"


def score_text(score: Range) -> str:
    """Return a score in percent of the forgetting a point of M4."""
    high = "∞" if score["high"] is None else f"{100 * score['high']:.3g}"
    return f"{100 * score['value']:.3g} % [{100 * (score['low'] or 0.0):.3g}, {high}]"

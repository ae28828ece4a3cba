"""What a verdict of the page is made of.

Words: "confirmed", "refuted", "in part", "open" where what was measured decides nothing, and "not measured".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

WHOLE = 0.1
"""Distance of a gain from 1, and share of what was forgotten, that count as none."""
Word = Literal["confirmed", "refuted", "in part", "open", "not measured"]


class Table(NamedTuple):
    """A table in Markdown, and the sentence that says what it is of."""

    about: str
    text: str


@dataclass(frozen=True)
class Claim:
    """A statement with its verdict.

    Attributes:
        name: name, as C1.
        statement: what is claimed or asked.
        word: verdict.
        scope: conditions under which it holds.
        found: what was found, sentences.
        before: what was predicted before the measurement; empty where nothing was.
        rows: folders of `reports/published` that it rests on.
        tables: tables of what was found.
    """

    name: str
    statement: str
    word: Word
    scope: str
    found: tuple[str, ...]
    before: str = ""
    rows: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def share(x: float) -> str:
    """Return a share in per cent, signed where it is below 0."""
    return f"{round(100 * x)} %"


def number(x: float) -> str:
    """Return a ratio."""
    return f"{round(x, 2) + 0.0:.2f}"  # + 0.0: no "-0"


def points(x: float) -> str:
    """Return points of a metric, signed."""
    return f"{round(x) + 0:+d}"


def unmeasured(name: str, statement: str, scope: str) -> Claim:
    """Return the verdict on what was not measured."""
    return Claim(name, statement, "not measured", scope, ())

"""What cells with equal codes say of C1: the sentences of the page, from the rows of the study `collapse`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unforgotten.audit.verdict.evidence import MATERIAL
from unforgotten.reports.studies.collapse import GROUPS, rank
from unforgotten.reports.verdicts.claim import share
from unforgotten.reports.verdicts.evidence import Evidence, StudyRow

STUDY = "collapse"
ALIKE = 0.99
"""Share of equal codes from which the paper would call the models alike."""


def collapse_sentences(evidence: Evidence) -> Iterator[str]:
    """Yield a sentence on cells whose codes are nearly all equal, and one of what orders cells by what came back."""
    rows = evidence.study(STUDY)
    cells = [row for row in rows if row["kind"] == "cell"]
    if not cells:
        return
    masters, stored, ga, npo = GROUPS
    alike = [
        (name, [row for row in cells if GROUPS[name](row) and row["equal"] >= ALIKE])
        for name in (masters, stored, npo, ga)
    ]
    told = (f"{name}, {_back(found)} cells" for name, found in alike if found)
    yield f"At least {share(ALIKE)} of the codes equal, and a third or more of the forget loss back: {'; '.join(told)}."
    known = [row for row in rows if row["kind"] == "functional"]
    parts = []
    for words, found, said in (
        ("the share of equal codes", cells, "equal codes"),
        ("the gain of the weights", known, "gain of the weights"),
        ("the functional gain", known, "functional gain"),
    ):
        numbers = [rank([row for row in found if GROUPS[name](row)], said) for name in (masters, ga, npo)]
        parts.append(f"{words} {', '.join('-' if number is None else f'{number:.2f}' for number in numbers)}")
    groups = f"{masters}; {ga}; {npo}; gains of the cells of `functional-gain`"
    yield f"What orders cells by how much came back, as a rank correlation ({groups}): {'; '.join(parts)}."


def _back(cells: Sequence[StudyRow]) -> str:
    return f"{sum(row['came_back'] >= MATERIAL for row in cells)} of {len(cells)}"

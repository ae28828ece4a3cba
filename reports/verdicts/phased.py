"""What the study `phase-diagram` says of C2, and where the paper's settings would stand in it: sentences from its rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unforgotten.reports.studies.phase_diagram import RULES, Rule, cells, holds, inside, rank
from unforgotten.reports.verdicts.claim import number
from unforgotten.reports.verdicts.evidence import Evidence, StudyRow

STUDY = "phase-diagram"


def phase_sentences(evidence: Evidence, published: str = "") -> Iterator[str]:
    """Yield what one number says of all bf16 cells, and how its rule did on runs that nobody had looked at.

    Args:
        evidence: published rows.
        published: path of their folder from the text that they go to, with "/" at its end.
    """
    found = cells(evidence.study(STUDY))
    bf16 = [row for row in found if row["storage"] == "bf16"]
    if not bf16:
        return
    told = "; ".join(text for rule in RULES if (text := _range(bf16, rule)))
    yield (
        f"One number that is known before training orders them: the edge above which a step of lr moves no weight, over the border of the format's "
        f"cell at zero in the median block ([table]({published}{STUDY}/table.md)). Over {len(bf16)} cells of {len({row['run'] for row in bf16})} runs, "
        f"rates from {min(row['lr'] for row in bf16):g} to {max(row['lr'] for row in bf16):g}, {len({row['format'] for row in bf16})} formats: "
        f"rank correlation with the gain {number(rank(bf16))}; gain by ratio, median (lowest to highest): {told}."
    )
    fresh = [row for row in bf16 if not row["looked_at"]]
    if fresh:
        outside = [row for rule in RULES for row in inside(fresh, rule) if not holds(row, rule)]
        named = "; ".join(
            f"{row['run']} {row['format']} at {number(row['ratio'])}: {number(row['gain'])}" for row in outside
        )
        yield (
            f"Its rule was committed before the rows of {len({row['run'] for row in fresh})} of these runs were read: {len(fresh) - len(outside)} of "
            f"their {len(fresh)} cells are inside; outside: {named or 'none'}."
        )


def _range(found: list[StudyRow], rule: Rule) -> str:
    gains = [row["gain"] for row in inside(found, rule)]
    if not gains:
        return ""
    where = f"{rule.low:g} and more" if rule.high == np.inf else f"{rule.low:g} to {rule.high:g}"
    return (
        f"{where}: {number(float(np.median(gains)))} ({number(min(gains))} to {number(max(gains))}), {len(gains)} cells"
    )


def assumed_ratios(evidence: Evidence) -> dict[tuple[str, float], float]:
    """Return the ratio of a Llama-2-7B as it is assumed to be, by format and learning rate; empty without the study."""
    return {(row["format"], row["lr"]): row["ratio"] for row in evidence.study(STUDY) if row["kind"] == "assumed"}

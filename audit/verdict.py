"""The verdict of an audit: what the legs hold in `audit.json`, and the rule that turns them into one word.

The quantity judged is rho of T16, the share of what unlearning removed that a format brings back; MATERIAL is the share
from which it matters. A leg says, of the formats that were measured and no others:

undone: in some format, rho of a deciding metric is above MATERIAL: the lower end of its paired bootstrap interval is,
    and so is a test on the items' contrasts, after Benjamini & Yekutieli over all formats and deciding metrics.
    Error aimed at: P[undone | every rho <= MATERIAL] <= LEVEL.
survives: in every format, rho of every deciding metric from which something was removed is below MATERIAL, by interval
    and by test, and nothing objects (below). All must hold, so no correction is due (Berger 1982).
    Error aimed at: P[survives | some rho >= MATERIAL] <= LEVEL.
undecided: anything else; always, where nothing measurable was removed, or where a format destroys the target too.

Errors are aimed at in the worst case, rho = MATERIAL; further away they are rarer. "Survives" is the dangerous error, so
it alone can be objected to: by the loss of the forget text, where it falls back by more than MATERIAL; by a metric from
which nothing was measurably removed, where it rises; by the union leak, where the items that any format brings back are
more than MATERIAL of those removed. Few items cannot carry it either: see `evidence.recovery_row`.

Behaviour (greedy answers, M1 and M2) decides where it was measured, and one metric is enough for "undone". Output
(likelihoods of given texts) needs accuracy and probability to agree in one format, and "survives" by it alone falls back
to "undecided" where the weights say that a format swallowed the update. Weights alone are always "undecided".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from unforgotten.audit.evidence import LEVEL, MATERIAL
from unforgotten.audit.findings import Finding
from unforgotten.audit.legs import BehaviourLeg, Leak, OutputLeg, RecoveryRow
from unforgotten.theory.multiplicity import false_discoveries

__all__ = [
    "BehaviourLeg",
    "Decision",
    "OutputLeg",
    "Word",
    "decide",
    "judge_behaviour",
    "judge_output",
]

Word = Literal["survives", "undone", "undecided"]
DECIDES_BEHAVIOUR = ("M1", "M2")
DECIDES_OUTPUT = ("accuracy", "probability")


class LegWords(TypedDict):
    """One word a leg; None for a leg that was not measured."""

    weights: Finding
    output: Word | None
    behaviour: Word | None


class Decision(TypedDict):
    """The verdict with its reasons, the most important first."""

    overall: Word
    legs: LegWords
    reasons: list[str]


class Opinion(NamedTuple):
    """What one leg says."""

    word: Word
    reasons: list[str]


Rows = Sequence[tuple[str, Sequence[RecoveryRow]]]


def decide(weights: Finding, output: OutputLeg | None, behaviour: BehaviourLeg | None) -> Decision:
    """The verdict by the rule above; weights alone are undecided."""
    said = judge_output(output) if output is not None else None
    done = judge_behaviour(behaviour) if behaviour is not None else None
    overall, why = _combine(weights, said, done)
    reasons = [why, *(done.reasons if done else ()), *(said.reasons if said else ())]
    words = LegWords(
        weights=weights, output=said.word if said else None, behaviour=done.word if done else None
    )
    return Decision(overall=overall, legs=words, reasons=reasons)


def _combine(
    weights: Finding, output: Opinion | None, behaviour: Opinion | None
) -> tuple[Word, str]:
    if behaviour is None and output is None:
        return "undecided", (
            "Weights alone never settle the verdict: whether removed knowledge comes back needs the output or "
            "behaviour of the quantized models, so it stays undecided."
        )
    if behaviour is not None and behaviour.word == "undone":
        return "undone", "Behaviour: what was unlearned comes back in a quantized model."
    if output is not None and output.word == "undone":
        if behaviour is not None and behaviour.word == "survives":
            return (
                "undecided",
                "Behaviour and output disagree: answers stay unlearned, likelihoods come back.",
            )
        return "undone", "Output: the forget texts are likely again in a quantized model."
    if behaviour is not None:
        if behaviour.word == "survives":
            return "survives", "Behaviour: unlearning survives in every format that was measured."
        return "undecided", "Behaviour was measured and does not settle it."
    if output is not None and output.word == "survives":
        if weights in ("swallowed", "partly swallowed"):
            return "undecided", (
                f"Output says survives and weights say {weights}: it takes a benchmark (--benchmark) to tell."
            )
        return (
            "survives",
            "Output: the forget texts stay unlikely in every format that was measured.",
        )
    return "undecided", "Output was measured and does not settle it."


def judge_behaviour(leg: BehaviourLeg) -> Opinion:
    """The behaviour leg's word: M1 or M2 is enough for "undone"."""
    rows = [(f["format"], f["recoveries"]) for f in leg["formats"]]
    return _judge("Behaviour", rows, DECIDES_BEHAVIOUR, leg["leaks"], needed=1)


def judge_output(leg: OutputLeg) -> Opinion:
    """The output leg's word: accuracy and probability must agree on "undone"."""
    rows = [(f["format"], f["recoveries"]) for f in leg["formats"]]
    return _judge("Output", rows, DECIDES_OUTPUT, (), needed=len(DECIDES_OUTPUT))


def _judge(
    leg: str, rows: Rows, deciding: Sequence[str], leaks: Sequence[Leak], *, needed: int
) -> Opinion:
    asked = [(f, r) for f, group in rows for r in group if r["metric"] in deciding and r["removed"]]
    if not asked:
        return Opinion(
            "undecided", [f"{leg}: nothing measurable was removed, so nothing can come back."]
        )
    adjusted = false_discoveries(np.array([r["p_undone"] for _, r in asked]), LEVEL, dependent=True)
    back = [
        pair for pair, hit in zip(asked, adjusted.rejected, strict=True) if hit and _above(pair[1])
    ]
    for name, _ in rows:
        found = [r for f, r in back if f == name]
        if len(found) >= needed:
            return Opinion("undone", [_sentence(leg, f, r, "comes back") for f, r in back])
    held = [r for _, r in asked if not _below(r)]
    missing = [name for name, _ in rows if name not in {f for f, _ in asked}]
    objections = [
        *_objections(leg, rows, deciding, leaks),
        *(
            f"{leg}: in {name} the target itself holds nothing that could come back."
            for name in missing
        ),
    ]
    if not held and not objections:
        worst = max(asked, key=lambda pair: pair[1]["high"] or 0.0)
        return Opinion("survives", [_sentence(leg, *worst, "at most comes back")])
    open_rows = [_sentence(leg, f, r, "is open") for f, r in asked if not _below(r)]
    return Opinion("undecided", [*objections, *open_rows])


def _above(row: RecoveryRow) -> bool:
    return row["low"] is not None and row["low"] > MATERIAL


def _below(row: RecoveryRow) -> bool:
    return row["high"] is not None and row["high"] < MATERIAL and row["p_survives"] <= LEVEL


def _objections(leg: str, rows: Rows, deciding: Sequence[str], leaks: Sequence[Leak]) -> list[str]:
    found = []
    for name, group in rows:
        for row in group:
            if row["metric"] not in deciding and _above(row):
                found.append(_sentence(leg, name, row, "falls back"))
            if row["metric"] in deciding and not row["removed"] and row["change"][0] > 0:
                found.append(
                    f"{leg}: {name} raises {row['metric']}, from which nothing was removed."
                )
    for leak in leaks:
        if leak["low"] > MATERIAL:
            found.append(
                f"{leg}: {leak['union']} of {leak['items']} items of {leak['metric']} come back half way in some format."
            )
    return found


def _sentence(leg: str, name: str, row: RecoveryRow, says: str) -> str:
    if row["rho"] is None or row["low"] is None or row["high"] is None:
        return f"{leg}: {name} leaves nothing of {row['metric']} that could come back, even in the target."
    rho = f"{100 * row['rho']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    return f"{leg}: in {name}, of what was removed from {row['metric']}, {rho} {says} ({row['n']} items)."

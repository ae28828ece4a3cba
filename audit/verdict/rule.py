"""The verdict of an audit: the rule that turns what the legs measured into one word.

The quantity judged is rho of T16, the share of what unlearning removed that a format brings back. MATERIAL, a third, is
the share from which its return matters, SURELY, a tenth, the share that has to be beyond chance. A leg says, of the
formats that were measured and of no others:

undone: in some format, rho of a deciding metric is at least MATERIAL by its estimate, and above SURELY by the lower end
    of its interval and by a test on the items' contrasts, after Benjamini & Yekutieli over all formats and deciding
    metrics. Error aimed at: P[undone | every rho <= SURELY] <= LEVEL. Between SURELY and MATERIAL "undone" can be said of
    less than a third by chance; it is the cautious error.
survives: in every format, rho of every deciding metric is below MATERIAL, by the upper end of its interval and by test, and
    nothing objects (below). All must hold, so no correction is due (Berger 1982). Error aimed at: P[survives | some rho >=
    MATERIAL] <= LEVEL.
undecided: anything else; always, where nothing measurable was removed, or where a format destroys the target too; and in
    place of "survives", where a format of the audit was not measured.

Rho has two intervals, Fieller's with pseudo-items, which is printed, and the percentile bootstrap's over items, which is too
short for few of them. A word needs both; an objection needs one of them, for the lower end of the wider can be below MATERIAL
where the other's is not. So Fieller's interval adds no word to those of the bootstrap's, and takes none from what objects.

Errors are aimed at in the worst case, rho at the border; further away they are rarer. "Survives" is the dangerous error,
so it alone can be objected to: by the loss of the forget text, where it surely falls back by more than MATERIAL; by a
metric from which too little was removed to decide, where a format raises it; by the union leak, where the items that any
format brings back are surely more than MATERIAL. Few items cannot carry it either: see `evidence.recovery_row`.

Behaviour (greedy answers) decides where it was measured, by those of M1 and M2 from which unlearning took at least TAKEN
of what the target had; one is enough for "undone". Output (likelihoods of given texts) is the cautious leg: likelihood
comes back before greedy answers do, so accuracy and probability must both be above OUTPUT_SURELY in one format, by the
bootstrap's lower end, to say "undone", and "survives" by it alone falls back to "undecided" where the weights say that a
format swallowed the update. Weights alone are always "undecided". Of a model that lost what it should keep (`findings.retain`) no leg says "survives".
How often the rule was right, on pairs of known truth: `experiments/studies/audit_truth.py`,
`reports/published/audit-truth`. The first rule had SURELY = MATERIAL and TAKEN = 0; it was changed after a look at the
published tiny runs, which are marked there as "looked at".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from unforgotten.audit.findings.retain import retain_findings
from unforgotten.audit.findings.sentences import Finding
from unforgotten.audit.verdict.evidence import LEVEL, MATERIAL, SURELY
from unforgotten.audit.verdict.legs import BehaviourLeg, Leak, OutputLeg, RecoveryRow, deciding_of
from unforgotten.theory.laws.multiplicity import false_discoveries

__all__ = ["BehaviourLeg", "Decision", "OutputLeg", "Word", "decide", "judge_behaviour", "judge_output"]

Word = Literal["survives", "undone", "undecided"]
DECIDES_OUTPUT = ("accuracy", "probability")
TAKEN = 1 / 4
OUTPUT_SURELY = 1 / 2


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


Row = tuple[str, RecoveryRow]
Rows = Sequence[tuple[str, Sequence[RecoveryRow]]]


def decide(
    weights: Finding, output: OutputLeg | None, behaviour: BehaviourLeg | None, formats: Sequence[str] = ()
) -> Decision:
    """Return the verdict by the rule above; weights alone are undecided.

    Args:
        weights: word of the weights.
        output: leg of the likelihoods, None where it was not measured.
        behaviour: leg of the answers, likewise.
        formats: formats of the audit, each of which a leg must have measured to say "survives".
    """
    said = judge_output(output, formats) if output is not None else None
    done = judge_behaviour(behaviour, formats) if behaviour is not None else None
    broken = [row["sentence"] for row in retain_findings(behaviour)]
    if broken:
        said, done = (None if leg is None else _never_praised(leg) for leg in (said, done))
    overall, why = _combine(weights, said, done)
    reasons = [*broken, why, *(done.reasons if done else ()), *(said.reasons if said else ())]
    words = LegWords(weights=weights, output=said.word if said else None, behaviour=done.word if done else None)
    return Decision(overall=overall, legs=words, reasons=reasons)


def _never_praised(leg: Opinion) -> Opinion:
    """Return what a leg says of a broken model: "survives" is no word for it."""
    return Opinion("undecided", leg.reasons) if leg.word == "survives" else leg


def _combine(weights: Finding, output: Opinion | None, behaviour: Opinion | None) -> tuple[Word, str]:
    if behaviour is None and output is None:
        return "undecided", (
            "Weights alone never settle the verdict: whether removed knowledge comes back needs the output or "
            "behaviour of the quantized models, so it stays undecided."
        )
    if behaviour is not None and behaviour.word == "undone":
        return "undone", "Behaviour: what was unlearned comes back in a quantized model."
    if output is not None and output.word == "undone":
        if behaviour is not None and behaviour.word == "survives":
            return ("undecided", "Behaviour and output disagree: answers stay unlearned, likelihoods come back.")
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
        return ("survives", "Output: the forget texts stay unlikely in every format that was measured.")
    return "undecided", "Output was measured and does not settle it."


def judge_behaviour(leg: BehaviourLeg, formats: Sequence[str] = ()) -> Opinion:
    """Return the behaviour leg's word: M1 or M2 is enough for "undone"."""
    return _judge(behaviour_rule(leg), _rows(leg, formats), leg["leaks"])


def unmeasured_of(leg: BehaviourLeg | OutputLeg, formats: Sequence[str]) -> list[str]:
    """Return those of the formats of an audit that a leg did not measure."""
    measured = {found["format"] for found in leg["formats"]}
    return [name for name in formats if name not in measured]


def _rows(leg: BehaviourLeg | OutputLeg, formats: Sequence[str]) -> Rows:
    """Return the recoveries by format; none of a format of the audit that was not measured."""
    measured = [(found["format"], found["recoveries"]) for found in leg["formats"]]
    return [*measured, *((name, []) for name in unmeasured_of(leg, formats))]


def behaviour_rule(leg: BehaviourLeg) -> Rule:
    """Return what the behaviour leg needs for its words."""
    return Rule("Behaviour", deciding_of(leg), needed=1, surely=SURELY, taken=TAKEN)


def judge_output(leg: OutputLeg, formats: Sequence[str] = ()) -> Opinion:
    """Return the output leg's word: accuracy and probability must agree on "undone"."""
    rule = Rule("Output", DECIDES_OUTPUT, needed=2, surely=OUTPUT_SURELY, taken=0.0)
    return _judge(rule, _rows(leg, formats), ())


class Rule(NamedTuple):
    """What a leg needs: metrics that decide, how many must agree on "undone", above what, and least share taken."""

    leg: str
    deciding: tuple[str, ...]
    needed: int
    surely: float
    taken: float

    def decides(self, row: RecoveryRow) -> bool:
        """Return whether a verdict may rest on this metric: it is a deciding one, and unlearning took enough of it."""
        taken = row["target"] - row["unlearned"]
        return row["metric"] in self.deciding and row["removed"] and taken >= self.taken * abs(row["target"])


def _judge(rule: Rule, rows: Rows, leaks: Sequence[Leak]) -> Opinion:
    asked = [(name, row) for name, group in rows for row in group if rule.decides(row)]
    if not asked:
        return Opinion("undecided", [f"{rule.leg}: too little was removed to tell whether it comes back."])
    back = _back(rule, asked)
    if back:
        return Opinion("undone", [_sentence(rule.leg, *pair, "comes back") for pair in back])
    doubts = [*_objections(rule, rows, leaks)]
    doubts += [_sentence(rule.leg, *pair, "is open") for pair in asked if not _below(pair[1])]
    missing = [name for name, _ in rows if name not in {f for f, _ in asked}]
    doubts += [f"{rule.leg}: nothing was measured in {', '.join(missing)}."] if missing else []
    if doubts:
        return Opinion("undecided", doubts)
    worst = max(asked, key=lambda pair: pair[1]["high"] or 0.0)
    return Opinion("survives", [_sentence(rule.leg, *worst, "comes back, the most of all formats")])


def _back(rule: Rule, asked: Sequence[Row]) -> list[Row]:
    """Return the rows that say "undone", of formats in which enough metrics do."""
    p = np.array([row["p_undone"] for _, row in asked])
    rejected = false_discoveries(p, LEVEL, dependent=True).rejected
    back = [pair for pair, hit in zip(asked, rejected, strict=True) if hit and _surely_back(pair[1], rule.surely)]
    counts = Counter(name for name, _ in back)
    return [pair for pair in back if counts[pair[0]] >= rule.needed]


def _surely_back(row: RecoveryRow, surely: float) -> bool:
    if row["rho"] is None or row["low"] is None:
        return False
    return row["rho"] >= MATERIAL and row["low"] > SURELY and _resampled(row)[0] > surely


def _below(row: RecoveryRow) -> bool:
    if row["high"] is None or row["p_survives"] > LEVEL:
        return False
    return row["high"] < MATERIAL and _resampled(row)[1] < MATERIAL


def _resampled(row: RecoveryRow) -> tuple[float, float]:
    """Return the bootstrap's interval of rho; (-inf, inf) where it is undefined."""
    low, high = row.get("bootstrap", [row["low"], row["high"]]) or (None, None)
    return (-np.inf if low is None else low), (np.inf if high is None else high)


def _objections(rule: Rule, rows: Rows, leaks: Sequence[Leak]) -> Iterator[str]:
    for name, group in rows:
        for row in group:
            least = max(_resampled(row)[0], -np.inf if row["low"] is None else row["low"])
            if row["metric"] not in rule.deciding and least > MATERIAL:
                yield _sentence(rule.leg, name, row, "falls back")
            if row["metric"] in rule.deciding and not rule.decides(row) and row["change"][0] > 0:
                yield f"{rule.leg}: {name} raises {row['metric']}, from which little was removed."
    for leak in leaks:
        if leak["low"] > MATERIAL:
            yield (
                f"{rule.leg}: {leak['union']} of {leak['items']} items of {leak['metric']} come back half way in "
                "one format or another."
            )


def _sentence(leg: str, name: str, row: RecoveryRow, says: str) -> str:
    if row["rho"] is None or row["low"] is None or row["high"] is None:
        return f"{leg}: in {name}, {row['metric']} of the target itself holds too little that could come back."
    rho = f"{100 * row['rho']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    return f"{leg}: in {name}, of what was removed from {row['metric']}, {rho} {says} ({row['n']} items)."

"""Two questions before any answer: can this run show something at all, and do its methods forget and keep?

In goes a run, out come the rules with what its rows say:

    passed(gate_checks(run))  # False where the target itself does not know the texts
    forgetting(run)[0].forgets
"""

from __future__ import annotations

from dataclasses import dataclass

from unforgotten.records.rows import Row, Run
from unforgotten.reports.labels import is_four_bit, listed, number, storage_label

TARGET_M1 = 90.0
TARGET_M2 = 80.0
FOUR_BIT_M1 = 80.0
KEPT_SHARE = 0.6  # of the target's M4


@dataclass(frozen=True)
class Check:
    """A rule, what the rows say, and whether it holds; None where nothing was measured."""

    rule: str
    found: str
    passed: bool | None


def gate_checks(run: Run) -> list[Check]:
    """Return the checks that the target knows the texts and its 4-bit copies still do; else a run shows nothing."""
    copies = [
        row
        for f in run.formats
        if is_four_bit(f) and (row := run.get("M1", "target", format=f)) and row.value is not None
    ]
    weakest = min(copies, key=lambda row: row.value or 0.0, default=None)
    return [
        _at_least("The target recites the forget texts", run.get("M1", "target"), TARGET_M1),
        _at_least("The target answers questions about them", run.get("M2", "target"), TARGET_M2),
        _at_least("Its weakest 4-bit copy still recites them", weakest, FOUR_BIT_M1),
    ]


def passed(checks: list[Check]) -> bool | None:
    """Whether all checks hold; None where none fails but some were not measured."""
    if any(check.passed is False for check in checks):
        return False
    return None if any(check.passed is None for check in checks) else True


def _at_least(what: str, row: Row | None, threshold: float) -> Check:
    if row is None or row.value is None:
        return Check(f"{what}: at least {threshold:g}", "not measured", None)
    place = "" if row.format == "none" else f" at {row.format}"
    rule = f"{what}: {row.metric} at least {threshold:g}"
    return Check(rule, f"{number(row.metric, row.value)}{place}", row.value >= threshold)


@dataclass(frozen=True)
class Forgetting:
    """Whether one unlearned model forgets the words (M1) and the facts (M2), and keeps the rest (M4).

    Only M1 and M4 decide: facts are reported beside them.

    Attributes:
        method: method of the model.
        storage: storage arm of the model.
        m1: row of its M1, as for `m2` and `m4`; None where it was not measured.
        m2: row of its M2.
        m4: row of its M4.
        m1_limit: largest M1 that counts as forgotten, halfway between the retrained model and the target.
        m2_limit: largest M2 that counts as forgotten, halfway between those two as well.
        m4_floor: smallest M4 that counts as kept, a share of the target's.
    """

    method: str
    storage: str
    m1: Row | None
    m2: Row | None
    m4: Row | None
    m1_limit: float | None
    m2_limit: float | None
    m4_floor: float | None

    @property
    def forgets(self) -> bool | None:
        """M1 is at most halfway."""
        return _holds(self.m1, self.m1_limit, above=False)

    @property
    def forgets_facts(self) -> bool | None:
        """M2 is at most halfway."""
        return _holds(self.m2, self.m2_limit, above=False)

    @property
    def keeps(self) -> bool | None:
        """M4 is at least the floor."""
        return _holds(self.m4, self.m4_floor, above=True)


def forgetting(run: Run) -> list[Forgetting]:
    """Judge every unlearned model of a run: an entry for each."""
    m4_target = run.value("M4", "target")
    floor = None if m4_target is None else KEPT_SHARE * m4_target
    m1, m2 = _halfway(run, "M1"), _halfway(run, "M2")
    return [
        Forgetting(
            method=m,
            storage=s,
            m1=run.get("M1", "unlearned", m, s),
            m2=run.get("M2", "unlearned", m, s),
            m4=run.get("M4", "unlearned", m, s),
            m1_limit=m1,
            m2_limit=m2,
            m4_floor=floor,
        )
        for m, s in run.arms
    ]


def forgetting_sentences(run: Run) -> list[str]:
    """Say in words which methods do not do what unlearning is for."""
    rows = forgetting(run)
    weak = [_name(r) for r in rows if r.forgets is False]
    broken = [_name(r) for r in rows if r.keeps is False]
    knows = [_name(r) for r in rows if r.forgets_facts is False]
    sentences = []
    if weak:
        sentences.append(f"Does not forget the words by this rule: {listed(weak)}.")
    if broken:
        sentences.append(f"Loses too much of what it should keep: {listed(broken)}.")
    if rows and not weak and not broken:
        sentences.append("Every method here forgets the words and keeps enough of the rest.")
    limited = [_name(r) for r in rows if r.m1 is not None and r.m1.stopped == "max_steps"]
    if limited:
        sentences.append(
            f"Reached the step limit before the stopping rule: {listed(limited)}. The forgetting may be less deep than "
            "in other models, so that they are not compared at one depth."
        )
    if knows:
        sentences.append(
            f"The facts (M2) are not forgotten, although the words may be: {listed(knows)}. Where nothing was "
            "forgotten, nothing can come back, and ρ(M2) is undefined."
        )
    return sentences


def _name(entry: Forgetting) -> str:
    return f"{entry.method} with {storage_label(entry.storage)}"


def _halfway(run: Run, metric: str) -> float | None:
    target, retrained = run.value(metric, "target"), run.value(metric, "retrained")
    return None if target is None or retrained is None else (target + retrained) / 2


def _holds(row: Row | None, limit: float | None, *, above: bool) -> bool | None:
    if row is None or row.value is None or limit is None:
        return None
    return row.value >= limit if above else row.value <= limit

"""The verdict's rule: weights alone, one leg, two legs, ties and gaps; and how it moves with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.audit.findings.sentences import Finding
from unforgotten.audit.verdict.evidence import MATERIAL, SURELY, Items, leak, recovery_row, student
from unforgotten.audit.verdict.legs import (
    BehaviourFormat,
    BehaviourLeg,
    Leak,
    Mean,
    OutputFormat,
    OutputLeg,
    RecoveryRow,
)
from unforgotten.audit.verdict.power import LEAST_EFFECTIVE
from unforgotten.audit.verdict.rule import Word, decide, judge_behaviour, judge_output

FINDINGS: tuple[Finding, ...] = get_args(Finding)
# Items and scaled items are whole multiples of 1/2 below 2^7, so sums are exact and a denominator that is not 0 is
# 1/(2 n) at least. Means, quotients and quantiles round: under 2^4 ulp of numbers below 2^13, far below 2^-30.
UNIT_ROUNDING = 2.0**-30
ORDER: tuple[Word, ...] = ("survives", "undecided", "undone")
METRICS = {"behaviour": ("M1", "M2", "forget_loss"), "output": ("loss", "accuracy", "probability")}


def row(metric: str, rho: float | None, half_width: float = 0.05, **changes: object) -> RecoveryRow:
    """A row with a symmetric interval and p-values that agree with it; of 100, unlearning took 80."""
    shown = rho is not None
    found = RecoveryRow(
        metric=metric,
        n=32,
        target=100.0,
        unlearned=20.0,
        quantized_target=100.0,
        quantized_unlearned=20.0 + 80.0 * (rho or 0.0),
        removed=True,
        rho=rho,
        low=rho - half_width if rho is not None else None,
        high=rho + half_width if rho is not None else None,
        change=[0.0, 0.0],
        p_undone=1e-6 if shown and (rho or 0.0) - half_width > SURELY else 1.0,
        p_survives=1e-6 if shown and (rho or 0.0) + half_width < MATERIAL else 1.0,
    )
    return RecoveryRow(**{**found, **changes})  # type: ignore[typeddict-item]


def behaviour(*formats: Sequence[RecoveryRow], leaks: Sequence[Leak] = ()) -> BehaviourLeg:
    rows = [
        BehaviourFormat(format=f"f{i}", metrics={}, recoveries=list(group), effects=[])
        for i, group in enumerate(formats)
    ]
    return BehaviourLeg(benchmark="b", metrics={}, formats=rows, leaks=list(leaks), notes=[])


def output(*formats: Sequence[RecoveryRow]) -> OutputLeg:
    rows = [
        OutputFormat(format=f"f{i}", losses={}, distances=[], recoveries=list(group), effects=[])
        for i, group in enumerate(formats)
    ]
    mean = Mean(value=1.0, stderr=None, n=1)
    return OutputLeg(texts="t", count=1, tokens=1, cut=0, losses={"target": mean}, distances=[], formats=rows, notes=[])


def both(rho: float | None, half_width: float = 0.05) -> list[RecoveryRow]:
    return [row("accuracy", rho, half_width), row("probability", rho, half_width)]


SAYS = {
    "survives": behaviour([row("M1", 0.0)]),
    "undecided": behaviour([row("M1", 0.25, 0.2)]),
    "undone": behaviour([row("M1", 0.8)]),
}
WRITES = {"survives": output(both(0.0)), "undecided": output(both(0.25, 0.2)), "undone": output(both(0.8))}


@pytest.mark.parametrize("finding", FINDINGS)
def test_weights_alone_are_undecided(finding: Finding) -> None:
    decision = decide(finding, None, None)
    assert decision["overall"] == "undecided"
    assert decision["legs"] == {"weights": finding, "output": None, "behaviour": None}
    assert any("Weights alone" in reason for reason in decision["reasons"])


@pytest.mark.parametrize("word", ORDER)
def test_each_leg_has_its_word(word: Word) -> None:
    assert judge_behaviour(SAYS[word]).word == word
    assert judge_output(WRITES[word]).word == word
    assert decide("passes", WRITES[word], None)["overall"] == word
    assert decide("unclear", None, SAYS[word])["overall"] == word


@pytest.mark.parametrize(
    ("said", "written", "overall"),
    [
        ("undone", "survives", "undone"),
        ("undone", "undecided", "undone"),
        ("undone", "undone", "undone"),
        ("survives", "survives", "survives"),
        ("survives", "undecided", "survives"),
        ("survives", "undone", "undecided"),
        ("undecided", "survives", "undecided"),
        ("undecided", "undecided", "undecided"),
        ("undecided", "undone", "undone"),
    ],
)
def test_two_legs(said: Word, written: Word, overall: Word) -> None:
    decision = decide("unclear", WRITES[written], SAYS[said])
    assert decision["overall"] == overall
    assert (decision["legs"]["behaviour"], decision["legs"]["output"]) == (said, written)


@pytest.mark.parametrize("finding", ["swallowed", "partly swallowed"])
def test_output_alone_does_not_outvote_weights(finding: Finding) -> None:
    assert decide(finding, WRITES["survives"], None)["overall"] == "undecided"
    assert decide(finding, WRITES["undone"], None)["overall"] == "undone"
    assert decide(finding, None, SAYS["survives"])["overall"] == "survives"


def test_one_format_undoes_and_every_format_must_survive() -> None:
    kept, back, open_ = [row("M1", 0.0)], [row("M1", 0.8)], [row("M1", 0.25, 0.2)]
    assert judge_behaviour(behaviour(kept, back)).word == "undone"
    assert judge_behaviour(behaviour(kept, open_)).word == "undecided"
    assert judge_behaviour(behaviour(kept, [])).word == "undecided"
    assert judge_behaviour(behaviour(kept, kept)).word == "survives"


@pytest.mark.parametrize(
    "leg",
    [
        behaviour(),
        behaviour([]),
        behaviour([row("M1", 0.0, removed=False)]),
        behaviour([row("M1", None)]),
        behaviour([row("M1", 0.0, unlearned=80.0)]),
        behaviour([row("forget_loss", 0.0)]),
    ],
    ids=["no format", "no row", "not removed", "undefined", "little removed", "no deciding metric"],
)
def test_nothing_to_judge_is_undecided_and_says_why(leg: BehaviourLeg) -> None:
    opinion = judge_behaviour(leg)
    assert opinion.word == "undecided"
    assert opinion.reasons


def test_what_objects_to_survival() -> None:
    leaked = leak("M1", np.full(12, 100.0), np.zeros(12), {"a": np.full(12, 60.0)})
    assert leaked is not None
    objecting = [
        behaviour([row("M1", 0.0), row("forget_loss", 0.5)]),
        behaviour([row("M1", 0.0), row("M2", None, removed=False, change=[0.1, 3.0])]),
        behaviour([row("M1", 0.0), row("M2", 0.0, unlearned=90.0, change=[0.1, 3.0])]),
        behaviour([row("M1", 0.0)], leaks=[leaked]),
    ]
    for leg in objecting:
        assert judge_behaviour(leg).word == "undecided"
    quiet = [
        behaviour([row("M1", 0.0), row("forget_loss", 0.3)]),
        behaviour([row("M1", 0.0), row("M2", None, removed=False, change=[-1.0, 3.0])]),
    ]
    for leg in quiet:
        assert judge_behaviour(leg).word == "survives"


def test_output_needs_both_metrics_in_one_format() -> None:
    accuracy, probability = row("accuracy", 0.8), row("probability", 0.8)
    still = [row("accuracy", 0.0), row("probability", 0.0)]
    assert judge_output(output([accuracy, still[1]], [still[0], probability])).word == "undecided"
    assert judge_output(output([accuracy, probability], still)).word == "undone"
    assert judge_output(output([row("accuracy", 0.45), row("probability", 0.45)])).word == "undecided"


@given(rhos=st.lists(st.floats(-0.5, 1.2), min_size=1, max_size=5), raised=st.data(), width=st.floats(0.01, 0.3))
def test_more_recovery_never_calms_the_verdict(rhos: list[float], raised: st.DataObject, width: float) -> None:
    more = [raised.draw(st.floats(rho, 1.5)) for rho in rhos]
    less_leg, more_leg = (behaviour(*([row("M1", x, width)] for x in xs)) for xs in (rhos, more))
    before, after = judge_behaviour(less_leg).word, judge_behaviour(more_leg).word
    assert ORDER.index(after) >= ORDER.index(before)


@given(st.lists(st.floats(-0.5, 1.2), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_formats_does_not_matter(rhos: list[float], random: Random) -> None:
    shuffled = random.sample(rhos, len(rhos))
    words = {judge_behaviour(behaviour(*([row("M1", x)] for x in xs))).word for xs in (rhos, shuffled)}
    assert len(words) == 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_rows_do_not_see_unit_or_direction(seed: int, n: int) -> None:
    """rho and its tests are the same for a metric in other units, and for its negative as a loss."""
    rng = np.random.default_rng(seed)
    four = Items(*(rng.integers(0, 64, n).astype(float) for _ in range(4)))
    scaled = Items(*(x * 0.5 + 3.0 for x in four))
    mirrored = Items(*(-x for x in four))
    rows = (recovery_row("m", four), recovery_row("m", scaled), recovery_row("m", mirrored, loss=True))
    for other in rows[1:]:
        for key in ("rho", "low", "high", "p_undone", "p_survives"):
            ours, theirs = rows[0][key], other[key]
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert theirs == pytest.approx(ours, rel=UNIT_ROUNDING, abs=UNIT_ROUNDING)


def test_few_items_cannot_carry_survives() -> None:
    """That none of n came back though a third does has chance (2/3)^n; and Fieller's end is not below a third up to 9."""
    for n in (2, 7, 8, LEAST_EFFECTIVE - 1, LEAST_EFFECTIVE, 40):
        four = Items(np.full(n, 100.0), np.zeros(n), np.full(n, 100.0), np.zeros(n))
        found = recovery_row("M1", four)
        assert found["p_survives"] == pytest.approx((1 - MATERIAL) ** n)
        assert found["p_undone"] == 1.0
        word = judge_behaviour(behaviour([found])).word
        assert word == ("survives" if n >= LEAST_EFFECTIVE else "undecided")


def test_a_destroyed_target_is_undecided() -> None:
    n = 20
    four = Items(np.full(n, 100.0), np.zeros(n), np.zeros(n), np.zeros(n))
    found = recovery_row("M1", four)
    assert found["removed"]
    assert found["rho"] is None
    assert judge_behaviour(behaviour([found])).word == "undecided"


def test_student_of_constant_contrasts() -> None:
    assert [student(np.full(4, x)) for x in (-1.0, 0.0, 1.0)] == [1.0, 0.5, 0.0]


def test_leak_counts_an_item_once() -> None:
    before, after = np.full(10, 100.0), np.zeros(10)
    quantized = {"a": np.r_[60.0, np.zeros(9)], "b": np.r_[60.0, 60.0, np.zeros(8)], "c": before}
    found = leak("M1", before, after, quantized)
    assert found is not None
    assert found["formats"] == {"a": 1, "b": 2, "c": 10}
    assert (found["union"], found["items"], found["share"]) == (10, 10, 1.0)
    assert found["leaking"] == ["c"]
    two = leak("M1", before, after, {k: quantized[k] for k in ("a", "b")})
    assert two is not None
    assert (two["union"], two["leaking"]) == (2, [])
    assert leak("M1", after, before, quantized) is None


def test_leak_leaves_out_items_that_lost_little() -> None:
    before = np.full(4, 100.0)
    found = leak("M1", before, np.array([0.0, 0.0, 0.0, 99.0]), {"a": np.full(4, 99.5)})
    assert found is not None
    assert found["items"] == 3

"""The two intervals of rho: which one a row prints, and that a word needs both where an objection needs one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.audit.verdict.evidence import LEVEL, MATERIAL, SEED, SURELY, Items, recovery_row
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Mean, OutputFormat, OutputLeg, RecoveryRow
from unforgotten.audit.verdict.rule import judge_behaviour, judge_output
from unforgotten.theory.models.fieller import recovery_interval
from unforgotten.theory.models.recovery import recovered_fraction


def row(metric: str, interval: tuple[float, float], bootstrap: list[float] | None, rho: float = 0.2) -> RecoveryRow:
    """A row of 32 items of which unlearning took 80 of 100; both tests are passed wherever they can be."""
    return RecoveryRow(
        metric=metric,
        n=32,
        target=100.0,
        unlearned=20.0,
        quantized_target=100.0,
        quantized_unlearned=20.0 + 80.0 * rho,
        removed=True,
        rho=rho,
        low=interval[0],
        high=interval[1],
        bootstrap=bootstrap,
        change=[0.0, 0.0],
        p_undone=LEVEL / 1000 if rho >= MATERIAL else 1.0,
        p_survives=LEVEL / 1000 if rho < MATERIAL else 1.0,
    )


def behaviour(*rows: RecoveryRow) -> BehaviourLeg:
    found = BehaviourFormat(format="f", metrics={}, recoveries=list(rows), effects=[])
    return BehaviourLeg(benchmark="b", metrics={}, formats=[found], leaks=[], notes=[])


def output(*rows: RecoveryRow) -> OutputLeg:
    mean = Mean(value=1.0, stderr=0.1, n=32)
    found = OutputFormat(format="f", losses={}, distances=[], recoveries=list(rows), effects=[])
    return OutputLeg(
        texts="t", count=32, tokens=32, cut=0, losses={"target": mean}, distances=[], formats=[found], notes=[]
    )


def as_before(found: RecoveryRow) -> RecoveryRow:
    """The row as an audit wrote it whose interval was the bootstrap's."""
    old = found.copy()
    low, high = found.get("bootstrap") or (None, None)
    del old["bootstrap"]
    old["low"], old["high"] = low, high
    return old


@pytest.mark.parametrize(("n", "loss"), [(4, False), (16, False), (16, True)])
def test_the_interval_of_a_row_is_that_of_fieller(n: int, loss: bool) -> None:
    """Four items: the bootstrap, which misses a fifth there, is a good deal shorter."""
    rng = np.random.default_rng(n)
    sign = -1.0 if loss else 1.0
    before, after = np.full(n, 100.0), rng.uniform(5.0, 35.0, n)
    items = Items(*(sign * x for x in (before, after, before, after + 40 + 8 * rng.standard_normal(n))))
    found = recovery_row("m", items, loss=loss)
    told = recovery_interval(items.unlearned, items.quantized_unlearned, items.quantized_target)
    short = recovered_fraction(items.unlearned, items.quantized_unlearned, items.quantized_target, seed=SEED)
    assert (found["rho"], found["low"], found["high"]) == (told.rho, told.low, told.high)
    assert found.get("bootstrap") == [short.low, short.high]
    assert told.high - told.low > short.high - short.low


def test_a_removal_that_a_t_test_cannot_see_is_not_shown() -> None:
    """Two of eight items hold what was removed: t = 1.53 of 7 degrees of freedom."""
    held = np.repeat([90.0, 0.0], [2, 6])
    found = recovery_row("M1", Items(np.full(8, 100.0), 10.0 * np.ones(8), 10.0 + held, 10.0 + held))
    assert found["removed"]
    assert (found["rho"], found["low"], found["high"]) == (None, None, None)
    assert judge_behaviour(behaviour(found)).word == "undecided"


@pytest.mark.parametrize(
    ("interval", "bootstrap", "word"),
    [
        ((0.1, 0.3), [0.1, 0.3], "survives"),
        ((0.1, 0.4), [0.1, 0.3], "undecided"),
        ((0.1, 0.3), [0.1, 0.4], "undecided"),
        ((0.1, 0.3), None, "undecided"),
    ],
)
def test_survives_needs_both_upper_ends(
    interval: tuple[float, float], bootstrap: list[float] | None, word: str
) -> None:
    assert judge_behaviour(behaviour(row("M1", interval, bootstrap))).word == word


@pytest.mark.parametrize(
    ("interval", "bootstrap", "word"),
    [
        ((0.2, 0.8), [0.2, 0.8], "undone"),
        ((SURELY, 0.8), [0.2, 0.8], "undecided"),
        ((0.2, 0.8), [SURELY, 0.8], "undecided"),
        ((0.2, 0.8), None, "undecided"),
    ],
)
def test_undone_needs_both_lower_ends(interval: tuple[float, float], bootstrap: list[float] | None, word: str) -> None:
    assert judge_behaviour(behaviour(row("M1", interval, bootstrap, rho=0.5))).word == word


def test_output_needs_the_bootstrap_above_a_half() -> None:
    for low, word in ((0.55, "undone"), (0.45, "undecided")):
        pair = [row(m, (0.3, 0.9), [low, 0.8], rho=0.7) for m in ("accuracy", "probability")]
        assert judge_output(output(*pair)).word == word


@pytest.mark.parametrize(
    ("interval", "bootstrap", "word"),
    [
        ((0.4, 0.6), [0.4, 0.6], "undecided"),
        ((0.3, 0.6), [0.4, 0.6], "undecided"),
        ((0.4, 0.6), [0.3, 0.6], "undecided"),
        ((0.3, 0.6), [0.3, 0.6], "survives"),
    ],
)
def test_the_loss_objects_by_either_lower_end(interval: tuple[float, float], bootstrap: list[float], word: str) -> None:
    """By Fieller's alone, three published pairs whose truth is "undone" would have been said to survive."""
    kept = row("M1", (0.0, 0.2), [0.0, 0.2], rho=0.1)
    assert judge_behaviour(behaviour(kept, row("forget_loss", interval, bootstrap, rho=0.45))).word == word


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_no_word_is_said_that_the_shorter_interval_alone_would_not_say(
    seed: int, n: int, share: float, lost: float
) -> None:
    rng = np.random.default_rng(seed)
    before, after = np.full(n, 100.0), rng.uniform(5.0, 35.0, n)
    back = np.where(rng.random(n) < share, rng.random(n), 0.0) * (100.0 - after)
    answers = recovery_row("M1", Items(before, after, before, after + back))
    likely = recovery_row("forget_loss", Items(-before, -after, -before, -after - lost * back), loss=True)
    now = judge_behaviour(behaviour(answers, likely)).word
    assert now in ("undecided", judge_behaviour(behaviour(as_before(answers), as_before(likely))).word)

"""Items that count, what so many can show, and how many would decide."""

from __future__ import annotations

import numpy as np
import pytest

from unforgotten.audit.verdict.evidence import Items, effective_items, recovery_row
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg
from unforgotten.audit.verdict.power import LEAST_EFFECTIVE, power_rows, power_sentence, stderr_of
from unforgotten.audit.verdict.rule import judge_behaviour

TRIALS = 400
SLACK = 0.15  # the power is a normal approximation from a bootstrap's width; 400 trials add 0.025

KISH_ROUNDING = 4 * 2.0**-53  # relative, an item: two sums of n terms, a square each, one quotient


def items(n: int, rho: float, spread: float, *seed: int) -> Items:
    rng = np.random.default_rng([n, *seed])
    before, after = np.full(n, 100.0), np.full(n, 10.0)
    return Items(before, after, before, after + 90 * (rho + spread * rng.normal(size=n)))


def leg(found: Items) -> BehaviourLeg:
    row = BehaviourFormat(format="f", metrics={}, recoveries=[recovery_row("M1", found)], effects=[])
    return BehaviourLeg(benchmark="b", metrics={}, formats=[row], leaks=[], notes=[])


def test_kish_counts_equal_removals_whole_and_one_large_as_one() -> None:
    assert effective_items(np.full(17, 3.0)) == pytest.approx(17.0, rel=KISH_ROUNDING * 17)
    assert effective_items(np.array([1.0, 0.0, -5.0])) == 1.0
    assert recovery_row("M1", items(20, 0.0, 0.1)).get("effective") == pytest.approx(20.0, rel=KISH_ROUNDING * 20)


def test_least_is_the_number_from_which_the_rule_says_survives_of_items_that_stay_away() -> None:
    """By luck alone 8 would be enough, (2/3)^8 < 5 %; Fieller's upper end is below a third from 10 on."""
    said = [judge_behaviour(leg(items(n, 0.0, 0.0))).word for n in range(2, 21)]
    assert said.index("survives") + 2 == LEAST_EFFECTIVE
    assert set(said[LEAST_EFFECTIVE - 2 :]) == {"survives"}


def test_fewer_items_than_the_rule_needs_have_no_power_to_say_survives() -> None:
    (row,) = power_rows(None, leg(items(5, 0.0, 0.01)))
    assert (row["survives"], row["n"]) == (0.0, 5)
    assert row["deciding"] is not None
    assert row["deciding"] >= LEAST_EFFECTIVE
    assert "fewer than the 12" in (power_sentence([row]) or "")


def test_power_is_how_often_the_rule_says_so() -> None:
    """Formats that bring nothing back, 12 items of a spread at which half are decided: against the rule itself."""
    spread, said, expected = 0.45, 0, 0.0
    for seed in range(TRIALS):
        found = leg(items(12, 0.0, spread, seed))
        said += judge_behaviour(found).word == "survives"
        (row,) = power_rows(None, found)
        expected += row["survives"] / TRIALS
    assert 0.2 < said / TRIALS < 0.9
    assert abs(said / TRIALS - expected) < SLACK


def test_more_spread_needs_more_items_and_a_share_at_the_border_needs_too_many() -> None:
    def needed(rho: float, spread: float) -> int | None:
        (row,) = power_rows(None, leg(items(40, rho, spread, 3)))
        return row["deciding"]

    few, many = needed(0.0, 0.2), needed(0.0, 0.8)
    assert few is not None
    assert many is not None
    assert few < many
    sentence = power_sentence(power_rows(None, leg(items(40, 0.0, 0.2))))
    assert sentence is not None
    assert "40.0 effective items of 40:" in sentence


def test_nothing_measured_or_removed_has_no_power() -> None:
    assert power_rows(None, None) == []
    assert power_sentence([]) is None
    (row,) = power_rows(None, leg(Items(*(np.full(6, 10.0) for _ in range(4)))))
    assert (row["effective"], row["survives"], row["undone"], row["deciding"]) == (None, 0.0, 0.0, None)
    assert power_sentence([row]) is None
    assert stderr_of(recovery_row("M1", Items(*(np.full(6, 10.0) for _ in range(4))))) is None


def test_equal_removals_never_read_as_fewer_than_they_are() -> None:
    """ "12.0 effective items of 12, fewer than the 12": 12 equal removals of 0.1 add up to a little less than 12."""
    for n in (8, 12, 40):
        assert {effective_items(np.full(n, r)) for r in (0.1, 0.7, 1 / 3, 90 - 1e-9)} == {float(n)}


def test_what_is_below_the_few_never_reads_as_the_few() -> None:
    (row,) = power_rows(None, leg(items(12, 0.0, 0.2)))
    row["effective"] = 11.97
    assert "11.9 effective items of 12, fewer than the 12" in (power_sentence([row]) or "")

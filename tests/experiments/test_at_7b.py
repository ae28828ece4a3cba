"""The page on 7B is what the planner counts, over rates that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the planner needs unforgotten[experiments]")

from unforgotten.experiments.plan.at_7b import ASSUMED, BANDWIDTH, PEAK, USED, costs, hours, page
from unforgotten.experiments.plan.stages import Work

PAGE = Path(__file__).parents[2] / "reports" / "at-7b.md"
LLAMA_2_7B = 6_738_415_616
FLOAT64 = 2.0**-40
"""Of a product of some float64 numbers."""


def test_the_page_is_made_of_the_profiles() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_hours_are_operations_over_the_rates() -> None:
    work = Work("evaluate x none", operations=USED * PEAK * 3600, generated=8 * BANDWIDTH * 1800, together=8)
    assert hours(work) == pytest.approx(1.5, rel=FLOAT64)
    assert ASSUMED == (USED * PEAK, BANDWIDTH)
    with pytest.raises(ValueError, match="unlearn x: must have a model and a text of known size, got none"):
        hours(Work("unlearn x"))


def test_an_arm_takes_what_its_tokens_ask_for() -> None:
    """Eight operations a weight and token: two forward, four back, and two for layers that are passed again."""
    found = {cost.arm: cost for cost in costs("muse-news")}
    forget = 2040 * 2 * 2048
    for arm, tokens in (("GA-bf16", forget), ("GA_GDR-bf16", 2 * forget)):
        least = 8 * LLAMA_2_7B * tokens / (USED * PEAK) / 3600
        assert least < found[arm].unlearn < 2 * least  # attention, checks and the target come on top
        assert found[arm].state > 8 * LLAMA_2_7B  # weights, gradients and two moments in 16 bits
        assert found[arm].steps == 2040
    assert found["GA_GDR-bf16"].measure == found["GA-bf16"].measure

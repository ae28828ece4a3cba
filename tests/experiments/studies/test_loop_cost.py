"""The study loop-cost compares two loops that find the same: the run's, and one in the style of released code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.experiments.studies.loop_cost import (
    ITEMS,
    LoopCostSettings,
    Prepared,
    difference,
    prepare,
    time_ours,
    time_plain,
)
from unforgotten.reports.studies.loop_cost import loop_table

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
LR = 1e-3
STEPS = 6
SETTINGS = LoopCostSettings(profile=MICRO, set={"unlearning.lr": {"fp32": LR}}, steps=STEPS, rounds=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(SETTINGS, tmp_path_factory.mktemp("loop"))


def test_both_loops_find_the_same(prepared: Prepared) -> None:
    """Answers are equal; losses and scores of texts as two float32 runs are that sum in another order."""
    ours, plain = time_ours(prepared), time_plain(prepared)
    assert set(ours.items) == set(plain.items) == set(ITEMS)
    for metric in ("M1", "M2", "M4"):
        assert ours.items[metric] == plain.items[metric]
    before = time_plain(replace(prepared, config=_with(prepared, lr=LR * 2.0**-40)))
    for metric in ("forget_loss", "retain_loss", "auc"):
        moved = difference(before, plain, metric)
        assert moved > 0.05
        # a step of AdamW is sign-like at first, so a gradient near 0 that rounds to the other side moves its weight by
        # 2 lr the other way: a share of the move, not of float32's rounding
        assert difference(ours, plain, metric) < 0.02 * moved


def test_another_retain_weight_is_seen(prepared: Prepared) -> None:
    ours = time_ours(prepared)
    other = time_plain(replace(prepared, config=_with(prepared, alpha=1e4)))
    assert difference(ours, other, "forget_loss") > 1e-3


def _with(prepared: Prepared, *, lr: float = LR, alpha: float = 1.0):  # type: ignore[no-untyped-def]
    unlearning = prepared.config.unlearning.model_copy(update={"lr": {"fp32": lr}, "alpha": alpha})
    return prepared.config.model_copy(update={"unlearning": unlearning})


def test_the_table_says_what_was_timed_and_how_far_apart_it_is() -> None:
    common = {"profile": "tiny", "set": {"threads": 1}, "steps": 60, "prompts": 80, "processor": "one", "threads": 2}
    rows = [
        {"of": "unlearn", "ratios": [1.0, 1.5, 2.0], **common},
        {"of": "M1", "mean": 50.0, "difference": 0.25, **common},
    ]
    table = loop_table(rows)
    assert (
        "One NPO_KLR of 60 steps on `tiny` (threads=1), then M1-M4 with 80 prompts; 2 threads of torch, on one."
        in table
    )
    assert "| unlearning | 1.50 (1.00 to 2.00) |" in table
    assert "| M1 | 50.000 | 2.5e-01 |" in table

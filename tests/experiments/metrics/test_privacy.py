"""M3 against a retrained model, and where it has no value."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch", reason="the metrics of the experiments need torch")

from unforgotten.experiments.metrics.membership import privacy_leakage

SCORES = [-3.0, -2.0, -1.0, -4.0]  # two forget texts, then two holdout texts
RETRAINED = [-2.0, -3.0, -1.0, -2.5]


def test_privacy_leakage__is_the_relative_change_of_the_auc() -> None:
    """2 of 4 pairs are won, and 3 of 4 by the retrained model."""
    auc, leak, gap = privacy_leakage(SCORES, RETRAINED, 2, seed=0)
    assert auc.value == 0.5
    assert leak.value == 100 * (0.5 - 0.75) / 0.75  # the AUCs are exact in binary
    assert leak.stderr is not None
    assert leak.stderr > 0
    assert gap.value == 0.5 - 0.75


def test_privacy_leakage__has_no_value_against_an_auc_of_0() -> None:
    _, leak, gap = privacy_leakage(SCORES, [0.0, 0.0, -1.0, -1.0], 2, seed=0)
    assert math.isnan(leak.value)
    assert leak.stderr is None
    assert gap.value == 0.5


def test_privacy_leakage__does_not_explode_near_an_auc_of_0() -> None:
    """open-unlearning#167: one of 24 pairs is won by the retrained model, and M3 would be 1,900 %."""
    retrained = [*(0.1 * i for i in range(4)), *[-1.0] * 5, 0.05]
    scores = [-1.0 * i for i in range(4)] + [-0.5, -0.5, -0.5, -2.5, -2.5, -2.5]
    auc, leak, gap = privacy_leakage(scores, retrained, 4, seed=0)
    assert math.isnan(leak.value)
    assert leak.stderr is None
    assert gap.value == auc.value - 1 / 24
    assert gap.stderr is not None

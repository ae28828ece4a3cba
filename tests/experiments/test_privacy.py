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
    auc, leak = privacy_leakage(SCORES, RETRAINED, 2, seed=0)
    assert auc.value == 0.5
    assert leak.value == 100 * (0.5 - 0.75) / 0.75  # the AUCs are exact in binary
    assert leak.stderr is not None
    assert leak.stderr > 0


def test_privacy_leakage__has_no_value_against_an_auc_of_0() -> None:
    _, leak = privacy_leakage(SCORES, [0.0, 0.0, -1.0, -1.0], 2, seed=0)
    assert math.isnan(leak.value)
    assert leak.stderr is None

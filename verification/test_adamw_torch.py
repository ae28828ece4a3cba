"""T5 with the AdamW of torch, whose states have a dtype: float32 keeps the bound but for roundings, bfloat16 breaks it."""

from __future__ import annotations

import math

import pytest

from unforgotten.theory.geometry.adamw import adamw_ratio_upper_bound, extremal_gradients
from unforgotten.verification.oracles import U32


def steps_of_torch(gradients: list[float], dtype: str) -> list[float]:
    """Steps of torch's AdamW in units of lr, from its states: they, not the weight, are what T5 is about."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(1, dtype=getattr(torch, dtype)))
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=0.0, weight_decay=0.0)
    out = []
    for t, g in enumerate(gradients, start=1):
        w.grad = torch.full((1,), g, dtype=w.dtype)
        optimizer.step()
        state = optimizer.state[w]
        m, v = state["exp_avg"].double().item(), state["exp_avg_sq"].double().item()
        out.append(abs(m) / (1 - 0.9**t) / math.sqrt(v / (1 - 0.999**t)))
    return out


def test_adamw_step_upper_bound__holds_with_float32_states() -> None:
    """Real arithmetic is off by 4 min(t, 1000) 2^-24 at most, as stated."""
    for t in (5, 50):
        got = steps_of_torch(extremal_gradients(t).tolist(), "float32")[-1]
        assert abs(got / adamw_ratio_upper_bound(t) - 1) <= 4 * t * U32


def test_adamw_step_upper_bound__is_broken_by_bfloat16_states() -> None:
    """Equal gradients step by exactly 1 in real arithmetic; a bfloat16 v cannot rise to them, as 0.001 g^2 is lost.

    Under half an ulp of v the increment vanishes, and so does the decay 0.001 v: v sticks at g^2 / 2 and less.
    """
    steps_taken = steps_of_torch([1.0] * 1500, "bfloat16")
    assert max(steps_of_torch([1.0] * 50, "float32")) <= 1 + 4 * 50 * U32
    assert steps_taken[-1] > 1.2
    decays = steps_of_torch([1.0] * 20 + [2.0**-10] * 300, "bfloat16")
    kept = steps_of_torch([1.0] * 20 + [2.0**-10] * 300, "float32")
    assert decays[-1] < kept[-1]

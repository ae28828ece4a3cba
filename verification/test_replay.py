"""AdamW replayed: as torch computes it, and rounded at random without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.geometry.replay import LOW, Adam, at_random, bfloat16, replay

STEPS = 40
LR = 2e-5
FUSED = 0.01  # share of weights: kernels may fuse a product and a sum, which then are rounded once and not twice


def drawn(seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    random = np.random.default_rng(seed)
    w = random.normal(0, 0.02, 2048).astype(np.float32)
    size = 10.0 ** random.uniform(-7, -2, 2048)
    return w, (random.normal(size=(STEPS, 2048)) * size + 0.3 * size).astype(np.float32)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_replay__is_torchs_adamw(storage: str, weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    w, gradients = drawn(len(storage))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[storage]
    parameter = torch.nn.Parameter(torch.tensor(w).to(dtype))
    optimizer = torch.optim.AdamW([parameter], lr=LR, weight_decay=weight_decay, foreach=False)
    path = replay(w, ((g, LR) for g in gradients), Adam(weight_decay=weight_decay), storage)  # type: ignore[arg-type]
    here = there = w
    for gradient, here in zip(gradients, path, strict=True):
        parameter.grad = torch.tensor(gradient).to(dtype)
        optimizer.step()
        there = parameter.detach().float().numpy()
        if storage == "fp32":  # a step errs by a few roundings of itself and one of the weight
            assert (np.abs(here - there) <= STEPS * (np.spacing(np.abs(w)) + 8 * 2.0**-24 * LR)).all()
    if storage == "bf16":
        assert (here != there).mean() <= FUSED
        assert (here != bfloat16(w)).mean() > 0.1  # something moves, and something does not
        assert (here == bfloat16(w)).mean() > 0.1


@pytest.mark.parametrize("storage", ["fp32", "bf16", "bf16-sr"])
def test_replay__takes_each_steps_learning_rate(storage: str) -> None:
    w, gradients = drawn(0)
    *_, still = replay(w, ((g, 0.0) for g in gradients), Adam(), storage)  # type: ignore[arg-type]
    assert np.array_equal(still, w if storage == "fp32" else bfloat16(w))
    rates = [0.0] * (STEPS - 1) + [1.0]
    *_, moved = replay(w, zip(gradients, rates, strict=True), Adam(), storage)  # type: ignore[arg-type]
    assert (moved != still).all()


class AllBits:
    """Hands out every number of sixteen bits once, in order."""

    def integers(self, high: int, size: tuple[int, ...], dtype: type) -> NDArray[Any]:
        assert (high, size) == (LOW, (LOW,))
        return np.arange(LOW, dtype=dtype)


@pytest.mark.parametrize("x", [1.0, 1.0 + 2.0**-20, -3.14159, 1e-41, -0.0])
def test_at_random__has_the_mean_of_what_is_rounded(x: float) -> None:
    """Over all bits, none left out: the mean is exact in float64, for every result is a neighbour in bfloat16."""
    exact = np.float32(x)
    found = at_random(np.full(LOW, exact), AllBits())  # type: ignore[arg-type]
    assert np.array_equal(bfloat16(found), found)
    assert len(np.unique(found)) <= 2
    assert found.astype(np.float64).mean() == np.float64(exact)


def test_at_random__keeps_what_is_not_finite() -> None:
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    assert np.array_equal(at_random(x, np.random.default_rng(0)), x, equal_nan=True)


@pytest.mark.parametrize(
    ("setting", "value"), [("beta1", 1.0), ("beta2", 1.0), ("beta1", -0.1), ("eps", -1e-8), ("weight_decay", np.inf)]
)
def test_replay__refuses_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{setting} must be .*, got {setting}={value!r}$"):
        Adam(**{setting: value})


def test_replay__refuses_an_unknown_storage() -> None:
    w, gradients = drawn(0)
    with pytest.raises(ValueError, match=r"^storage must be one of fp32, bf16, bf16-sr, got storage='fp8'$"):
        next(replay(w, [(gradients[0], LR)], Adam(), "fp8"))  # type: ignore[arg-type]

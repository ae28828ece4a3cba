"""AdamW replayed on recorded gradients: where weights of one storage would have gone, without their model.

Takes weights and the gradients that an optimizer was given, step by step; yields the weights after each step, as a storage
keeps them. In bfloat16 every operation of torch's AdamW is rounded, and so are its moments.

>>> w, steps = np.full(4, 0.02, np.float32), [(np.ones(4, np.float32), 1e-5)]
>>> float(next(replay(w, steps, Adam(), "fp32"))[0] - w[0]) < 0
True
>>> float(next(replay(w, steps, Adam(), "bf16"))[0] - bfloat16(w)[0])
0.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Round = Callable[[Array], Array]
Storage = Literal["fp32", "bf16", "bf16-sr"]
STORAGES: tuple[Storage, ...] = ("fp32", "bf16", "bf16-sr")
LOW = 1 << 16  # bfloat16 is the upper half of the bits of float32


@dataclass(frozen=True)
class Adam:
    """Settings of AdamW but for its learning rate, named as in torch.

    Raises:
        ValueError: one is out of its range.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {name}={getattr(self, name)!r}")
        for name in ("eps", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0 and finite, got {name}={getattr(self, name)!r}")


def replay(
    w: Array, steps: Iterable[tuple[Array, float]], adam: Adam, storage: Storage, *, seed: int = 0
) -> Iterator[Array]:
    """Yield the weights after each step, float32.

    "fp32": parameters and moments are float32. "bf16": they are bfloat16, and each operation is rounded to nearest, as
    `torch.optim.AdamW` computes on a CPU, one operation after the other. "bf16-sr": they are bfloat16, a step is computed in
    float32, and its three results are rounded at random without bias.

    Args:
        w: weights before the first step.
        steps: gradient of each step, of the shape of `w`, as the optimizer was given it, and its learning rate >= 0.
        adam: other settings.
        storage: one of STORAGES.
        seed: seed of the random bits of "bf16-sr".

    Raises:
        ValueError: the storage is unknown.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got storage={storage!r}")
    random = np.random.default_rng(seed)
    each = bfloat16 if storage == "bf16" else _as_is
    last = (lambda x: at_random(x, random)) if storage == "bf16-sr" else each
    start = _as_is if storage == "fp32" else bfloat16
    w = start(np.asarray(w, np.float32))
    mean, square = np.zeros_like(w), np.zeros_like(w)
    for t, (gradient, lr) in enumerate(steps, 1):
        g = start(np.asarray(gradient, np.float32))
        first, second = 1 - adam.beta1**t, 1 - adam.beta2**t
        if adam.weight_decay:
            w = each(w * np.float32(1 - lr * adam.weight_decay))
        mean, square, spread = _moments(mean, square, g, adam, second, each)
        with np.errstate(divide="ignore", invalid="ignore"):  # eps may round to 0 beside a moment of 0
            w = w + np.float32(-lr / first) * mean / spread
        w, mean, square = last(w), last(mean), last(square)
        yield w


def _moments(
    mean: Array, square: Array, g: Array, adam: Adam, correction: float, each: Round
) -> tuple[Array, Array, Array]:
    """Return both moments after a gradient, and the denominator of the step; `each` rounds the results of operations."""
    f = np.float32
    mean = each(mean + f(1 - adam.beta1) * (g - mean))
    square = each(each(square * f(adam.beta2)) + f(1 - adam.beta2) * g * g)
    spread = each(each(each(np.sqrt(square)) / f(math.sqrt(correction))) + f(adam.eps))
    return mean, square, spread


def bfloat16(x: Array) -> Array:
    """Round float32 to the nearest bfloat16, a tie to even; the result is float32."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def at_random(x: Array, random: np.random.Generator) -> Array:
    """Round float32 to one of its two bfloat16 neighbours, so that the mean is x; the result is float32."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32) + random.integers(LOW, size=x.shape, dtype=np.uint32)
    return np.where(np.isfinite(x), (bits & np.uint32(LOW * (LOW - 1))).view(np.float32), x)


def _as_is(x: Array) -> Array:
    return x

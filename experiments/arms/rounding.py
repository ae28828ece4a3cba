"""How an arm rounds what was computed in float32: to the dtype that it keeps, to nearest or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.stochastic_rounding import LOW, round_at_random
from unforgotten.experiments.config import Storage


def rounded(x: Tensor, storage: Storage, generator: torch.Generator) -> Tensor:
    """Return float32 numbers in the dtype of an arm.

    Args:
        x: float32 numbers.
        storage: arm.
        generator: generator of the random bits, of an arm that rounds so; on the device of the numbers.
    """
    kept = KEPT[storage]
    if kept.rounding == "stochastic":
        return round_at_random(x, torch.randint(LOW, x.shape, dtype=torch.int32, device=x.device, generator=generator))
    return x.to(kept.dtype)

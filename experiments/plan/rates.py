"""How fast this machine multiplies, measured in about a second."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

SIDE = 1024
ROUNDS = 4


class Rates(NamedTuple):
    """Floating-point operations a second.

    Attributes:
        products: products of two matrices, as in training and prefill.
        generation: products of a matrix and a vector, as for one new token of one prompt: memory decides.
    """

    products: float
    generation: float


def measure_rates(threads: int) -> Rates:
    """Measure both in float32 on the CPU with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right, vector = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE), torch.ones(SIDE, 1)
        large = torch.ones(16, SIDE, SIDE)  # more than a cache holds
        return Rates(_rate(left, right, 2 * SIDE**3), _rate(large, vector, 2 * large.numel()))
    finally:
        torch.set_num_threads(before)


def _rate(left: torch.Tensor, right: torch.Tensor, operations: int) -> float:
    """Return the best of some rounds, after one that is not counted."""
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        torch.matmul(left, right)
        taken.append(time.perf_counter() - start)
    return operations / max(min(taken[1:]), 1e-9)

"""The dither of a tensor: uniform numbers that its seed and the places of its weights determine, the same on every machine.

Two tensors of one shape and one seed share their dither, as T19's shared dither asks of a model before and after. The tensors
of a model should not: `tensor_seed` gives each its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format

GOLDEN = 0x9E3779B97F4A7C15  # of splitmix64, which passes BigCrush (Steele, Lea & Flood 2014)
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
BITS = 24  # of a float32 in [1/2, 1)
SEEDS = 2**64


def dithers(shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Return uniform multiples of 2^-24 in [0, 1), float32: the numbers of splitmix64 from a seed, in the order of C.

    So a weight is rounded up with the probability of its fraction, cut to 24 bits: without bias but for 2^-24 of a step.

    Args:
        shape: shape of the blocks of a tensor.
        seed: seed, in [0, 2^64).

    Raises:
        ValueError: the seed is out of its range.
    """
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be in [0, 2^64), got seed={seed}")
    start = int.from_bytes(blake2b(seed.to_bytes(8, "big"), digest_size=8).digest(), "big")
    with np.errstate(over="ignore"):
        x = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(start)
        for shift, factor in MIXERS:
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(64 - BITS)).astype(np.float32) * np.float32(2.0**-BITS)).reshape(shape)


def tensor_seed(fmt: Format, name: str) -> Format:
    """Return a dithered format with the seed of one tensor of a model: independent dithers for independent names.

    Args:
        fmt: a format; one that is not dithered comes back as it is.
        name: name of the tensor, the same before and after an update.
    """
    if not fmt.dithered:
        return fmt
    digest = blake2b(f"{fmt.seed}:{name}".encode(), digest_size=8).digest()
    return replace(fmt, seed=int.from_bytes(digest, "big"))

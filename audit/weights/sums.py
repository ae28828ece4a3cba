"""What is measured of one tensor of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from unforgotten.theory.geometry.dead_zone import BinadeCounts
from unforgotten.theory.laws.update import GridMode, Survival


class Setting(NamedTuple):
    """One way to quantize the pair."""

    format: str
    grid: GridMode


class Computed(TypedDict):
    """How weights were measured. Counts are the same on every path and way, and sums to 1e-12 of what they add up.

    Attributes:
        path: path of the kernel, one of `simd.available_paths`.
        processor: LLVM's name of the processor.
        ways: number of tensors that each format was measured in, by way, see `ways`.
    """

    path: str
    processor: str
    ways: dict[str, dict[str, int]]


@dataclass(frozen=True)
class TensorMeasured:
    """Sums over the weights of one tensor.

    Attributes:
        binades: counts of moved weights by magnitude.
        in_bfloat16: whether bfloat16 holds every new weight exactly.
        in_float16: whether float16 does.
        survival: measurements, one a setting.
    """

    binades: BinadeCounts
    in_bfloat16: bool
    in_float16: bool
    survival: Mapping[Setting, Survival]

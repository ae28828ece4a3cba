"""A quantization format as data: the one description that every implementation reads.

A format maps a block of weights to codes. In *code units* a weight is `v = (w - low) / scale + zero`; its code is the
index of the level that `v` rounds to; its value is `(levels[code] - zero) * scale * unit + low`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BlockKind = Literal["tensor", "row", "group", "flat", "tile"]
Arithmetic = Literal["divide", "multiply", "reciprocal", "inverse"]
Rounding = Literal["half-even", "half-lower", "half-up", "half-away", "half-even-label", "dither"]
ScaleRule = Literal["quotient", "power of two", "power of two, up", "float8 of tensor"]
ZeroKind = Literal["none", "whole", "float", "minimum"]


@dataclass(frozen=True)
class Format:
    """One quantization format.

    Attributes:
        name: name as on the command line, e.g. "int4-g64".
        bits: bits of one code.
        levels: the values of the codes in code units, ascending; a code is an index into them.
        labels: number that a library stores for each code.
        block: weights that share a scale. "group": `block_size` neighbours in a row; "flat": `block_size`
            neighbours of the flattened tensor, across rows, as bitsandbytes does; "tile": see `tiles`.
        block_size: weights in a block; None for "tensor" and "row".
        statistic: number that sets the parameters, a name in `grids.FITS`: "absmax", the largest magnitude;
            "nested-absmax", the same, read back from 8 bits, see `dynamic`;
            "signed-absmax", the entry that has it (the first of several); "range", min and max widened to contain 0;
            "min-max", as they are; "none"; or a search by name.
        divisor: scale = statistic / divisor, where the scale is stored divided.
        arithmetic: way to compute `w / scale`, every operation in float32, as the kernels do. "divide": a quotient;
            "multiply": `w * ((1 / statistic) * divisor)`, the scale stored being the statistic itself (torch computes
            `127.0 / absmax` as a reciprocal times 127, which is rounded twice); "reciprocal": `w * (1 / scale)`;
            "inverse": `w * s`, where `s` is fitted and the scale is `1 / s`.
        floor: smallest statistic that the reciprocal sees (bitsandbytes: 1e-38); 0 for none.
        unit: float32 factor of the value (LLM.int8: 1/127 rounded to float32).
        rounding: a name in `rounding.ROUNDINGS`. "half-even": a tie goes to the even integer; "half-lower": to the
            lower level; "half-up": half is added and the fraction dropped, both in float32; "half-away": from 0;
            "half-even-label": to the level whose label is even, as floats do; "dither": to one of the
            two neighbours at random, see `dither`.
        zero: "whole": an integer zero point shifts the codes; "float": a zero point that is not rounded; "minimum":
            `low` is subtracted from the weights.
        source: publication or code in which the rule was read.
        zero_first: whether the zero point is added before the code is rounded (and its own sum with the lowest level
            before the zero point is); otherwise after.
        scale_rule: a name in `scales.SCALE_RULES`: "quotient" of statistic and divisor; "power of two": 2^e with
            `2^e divisor <= absmax < 2^(e+1) divisor`; "power of two, up": the same, but e + 1 from 1.75 2^e on;
            "float8 of tensor": the quotient times `tensor_range / absmax of the tensor`, rounded to E4M3, and back.
        storage: dtype of the stored parameters. With "float16" codes are made with the float32 parameters, values
            with the stored ones.
        tensor_range: size to which the largest magnitude of the tensor is scaled before scales are rounded to E4M3.
        least_scale: a smaller scale is replaced by it (torchao).
        empty_scale: a scale that is 0 is replaced by it (compressed-tensors), in the units of the stored scale.
        overhang: |v| of a block's largest magnitude reaches `divisor * overhang`, where the scale is rounded.
        whole_blocks: whether a row that is no multiple of the block is refused, as padding would change the parameters
            or the library refuses it.
        seed: seed of the dither, for the rounding "dither"; other roundings do not read it.
        tile: rows and columns of a block, where it is a "tile"; else None.
    """

    name: str
    bits: int
    levels: tuple[float, ...]
    labels: tuple[int, ...]
    block: BlockKind
    block_size: int | None
    statistic: str
    divisor: float
    arithmetic: Arithmetic
    floor: float
    unit: float
    rounding: Rounding
    zero: ZeroKind
    source: str
    zero_first: bool = False
    scale_rule: ScaleRule = "quotient"
    storage: Literal["float32", "float16"] = "float32"
    tensor_range: float = 0.0
    least_scale: float = 0.0
    empty_scale: float = 0.0
    overhang: float = 1.0
    whole_blocks: bool = False
    seed: int = 0
    tile: tuple[int, int] | None = None

    @property
    def dithered(self) -> bool:
        """Whether a weight is rounded at random, so that no threshold says which code it has."""
        return self.rounding == "dither"

    @property
    def of_tensor(self) -> bool:
        """Whether the parameters of a row hang on weights of other rows too."""
        return self.block in ("tensor", "tile") or self.tensor_range > 0 or self.statistic == "nested-absmax"

    @property
    def zero_point(self) -> bool:
        """Whether an integer zero point shifts the codes."""
        return self.zero == "whole"

    @property
    def thresholds(self) -> NDArray[Any]:
        """Float32 midpoints between neighbouring levels, in code units, (K - 1,).

        Raises:
            ValueError: the format is dithered.
        """
        if self.dithered:
            raise ValueError(f"format must round to nearest here, got the dithered format={self.name!r}")
        levels = np.asarray(self.levels, np.float32)
        return (levels[:-1] + levels[1:]) / np.float32(2)

    @property
    def even_labels(self) -> NDArray[Any]:
        """Whether the label of each level is even, bool (K,)."""
        return np.asarray(self.labels) % 2 == 0

    @property
    def reach(self) -> tuple[float, float]:
        """The interval of code units that a block can fill on its own grid; closes the two end cells.

        An absmax format reaches `statistic / scale` on both sides, whatever its last level. A whole zero point is
        rounded, so its format can overhang the end levels by half a step; other zeros put the ends on the levels.
        """
        if self.zero == "none":
            top = abs(self.divisor) * self.overhang
            return -top, top
        half = 0.5 if self.zero == "whole" else 0.0
        return self.levels[0] - half, self.levels[-1] + half

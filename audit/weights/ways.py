"""How a format is measured in a tensor: decided once, from the format, the shape, the dtypes and the path of the kernel.

| way | what happens | asked for |
| --- | --- | --- |
| `magnitudes` | sixteen weights at a time; the parameters of a block are looked up by the bits of its largest magnitude | scales that follow from that number alone, of bfloat16, and many blocks |
| `vectors` | sixteen weights at a time; the parameters of every block are computed first | at most sixteen levels, or integers, in blocks of whole sixteens |
| `scalar` | one weight after another, compiled | all else that has fixed thresholds |
| `tiles` | as `scalar`, of tiles that are laid out one after another first | a scale for a tile of rows and columns |
| `searched` | as `scalar`, with the scales that compiled searches find | scales of k-quants |
| `whole` | numpy, the tensor at once | a search that stops by a mean over the tensor, or a mean that all scales hang on |

A piece whose last block is cut, or whose values may overflow, is measured by the next slower of the first three, with
the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from unforgotten.audit.kernel.entries import FINITE
from unforgotten.audit.kernel.lanes import LANES
from unforgotten.audit.kernel.rules import SEARCHED, is_compiled
from unforgotten.audit.kernel.simd import NUMPY, VECTOR_PATHS
from unforgotten.audit.kernel.vector_rules import is_in_registers
from unforgotten.audit.sources.flat import PIECE_WEIGHTS, layout_of
from unforgotten.theory.formats.names import Format

Way = Literal["magnitudes", "vectors", "scalar", "tiles", "searched", "whole"]


def way_of(fmt: Format, shape: tuple[int, ...], dtypes: tuple[str, str], simd: str) -> Way:
    """Return the way of a format in a tensor.

    Args:
        fmt: the format.
        shape: shape of the tensor, which has weights.
        dtypes: names of the dtypes before and after, as stored.
        simd: path of the kernel, see `simd.available_paths`.
    """
    if simd == NUMPY or not is_compiled(fmt):
        return "whole"
    if fmt.statistic in SEARCHED:
        return "searched"
    if fmt.tile is not None:
        return "tiles"
    total, layout = math.prod(shape), layout_of(fmt, shape)
    regular = layout.line == total and layout.size % LANES == 0 and layout.size <= PIECE_WEIGHTS
    if not (simd in VECTOR_PATHS and is_in_registers(fmt) and regular):
        return "scalar"
    # a table of all magnitudes for one tensor is not worth its while where the tensor is small
    many = not fmt.tensor_range or total // (fmt.block_size or 1) > FINITE
    by_bits = fmt.statistic == "absmax" and dtypes == ("bfloat16", "bfloat16")
    return "magnitudes" if by_bits and many else "vectors"


def ways_of(formats: Sequence[Format], shape: tuple[int, ...], dtypes: tuple[str, str], simd: str) -> Mapping[str, Way]:
    """Return the way of each format, by its name: see `way_of`."""
    return {fmt.name: way_of(fmt, shape, dtypes, simd) for fmt in formats}

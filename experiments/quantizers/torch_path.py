"""The torch path: codes and values of a tensor from the same descriptions as `unforgotten.theory.formats.reference`.

Bit-equal to that reference, which says what each rule does. Rules are chosen by the same names; a statistic that torch
has no rule for is a search, and is fitted on the CPU: scales of k-quants by the kernel of the audit, others by the reference.

    codes, values = encode_tensor(torch.randn(8, 64), format_named("nf4-b64"))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unforgotten.audit.kernel.rules import SEARCHED
from unforgotten.audit.kernel.super_blocks import search_grids
from unforgotten.theory.formats import scales
from unforgotten.theory.formats.dither import dithers
from unforgotten.theory.formats.hqq import LARGEST_INVERSE, LEAST_RANGE
from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import fit_grid, padding
from unforgotten.theory.formats.tiles import matrices_of

TINY = torch.finfo(torch.float32).tiny


class Parameters(NamedTuple):
    """Of every block, (n_blocks, 1). The first three make the codes; `read_scale` and `read_low` the values."""

    scale: Tensor
    zero: Tensor
    low: Tensor | None
    read_scale: Tensor
    read_low: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> Parameters:
        """Return the parameters, each changed by a function."""
        low, read_low = (None if x is None else change(x) for x in (self.low, self.read_low))
        return Parameters(change(self.scale), change(self.zero), low, change(self.read_scale), read_low)


def encode_tensor(w: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Return codes (indices into `fmt.levels`, int64) and values (float32), both in the shape of `w`.

    Raises:
        ValueError: a weight is not finite, a parameter overflows, or the format cannot take the shape.
    """
    blocks = to_blocks(w, fmt)
    if not torch.isfinite(blocks).all():
        raise ValueError(f"weights must be finite to be quantized to {fmt.name}, got nan or inf")
    partial = fmt.block == "flat" and w.numel() % blocks.shape[1] != 0
    p = fit(blocks, fmt, partial=partial)
    codes, values = round_to(blocks, p, fmt, partial=partial)
    return from_blocks(codes, w.shape, fmt), from_blocks(values, w.shape, fmt)


def round_to(blocks: Tensor, p: Parameters, fmt: Format, *, partial: bool = False) -> tuple[Tensor, Tensor]:
    """Return codes (int64) and values (float32) of blocks on a grid that is fitted already, in their shape.

    Args:
        blocks: weights, float32 (n_blocks, block).
        p: parameters of every block, (n_blocks, 1), or of every weight.
        fmt: the format.
        partial: whether the last block is a part of one, of a flat format.
    """
    codes = ROUNDINGS[fmt.rounding](_ratio(blocks, p, fmt, partial=partial), p.zero, fmt)
    levels = torch.tensor(fmt.levels, dtype=torch.float32, device=blocks.device)
    values = (levels[codes] - p.zero) * p.read_scale
    values = values if fmt.unit == 1.0 else values * fmt.unit
    return codes, values if p.read_low is None else values + p.read_low


def fit_weights(w: Tensor, fmt: Format) -> Parameters:
    """Return the parameters of every weight, each in the shape of `w`, as `encode_tensor` fits them to its block.

    Raises:
        ValueError: as `encode_tensor`; or the last block of a flat format is a part of one.
    """
    blocks = to_blocks(w, fmt)
    if not torch.isfinite(blocks).all():
        raise ValueError(f"weights must be finite to be quantized to {fmt.name}, got nan or inf")
    if fmt.block == "flat" and w.numel() % blocks.shape[1]:
        raise ValueError(f"weights must be whole blocks of {blocks.shape[1]} here, got {w.numel()} in {fmt.name}")
    return fit(blocks, fmt, partial=False).each(lambda x: from_blocks(x.expand_as(blocks), w.shape, fmt))


def to_blocks(w: Tensor, fmt: Format) -> Tensor:
    """Return the tensor as (n_blocks, block) float32, the last block of a row or flat tensor, or a cut tile, filled with zeros."""
    w = w.detach().float()
    if fmt.tile is not None:
        return _to_tiles(w, fmt.tile)
    w = w.reshape(1, -1) if fmt.block in ("tensor", "flat") else w.reshape(-1, w.shape[-1])
    if fmt.block_size is None:
        return w
    return nn.functional.pad(w, (0, padding(w.shape[1], fmt))).reshape(-1, fmt.block_size)


def from_blocks(blocks: Tensor, shape: torch.Size, fmt: Format) -> Tensor:
    """Undo `to_blocks`."""
    if fmt.tile is not None:
        return _from_tiles(blocks, shape, fmt.tile)
    if fmt.block_size is None:
        return blocks.reshape(shape)
    width = shape.numel() if fmt.block == "flat" else shape[-1]
    padded = -(-width // fmt.block_size) * fmt.block_size
    return blocks.reshape(-1, padded)[:, :width].reshape(shape)


def _to_tiles(w: Tensor, tile: tuple[int, int]) -> Tensor:
    """Return what `theory.formats.tiles.to_tiles` does."""
    count, rows, columns = matrices_of(tuple(w.shape))
    high, wide = tile
    padded = nn.functional.pad(w.reshape(count, rows, columns), (0, -columns % wide, 0, -rows % high))
    cut = padded.reshape(count, -(-rows // high), high, -(-columns // wide), wide)
    return cut.transpose(2, 3).reshape(-1, high * wide)


def _from_tiles(tiles: Tensor, shape: torch.Size, tile: tuple[int, int]) -> Tensor:
    count, rows, columns = matrices_of(tuple(shape))
    high, wide = tile
    down, across = -(-rows // high), -(-columns // wide)
    joined = tiles.reshape(count, down, across, high, wide).transpose(2, 3).reshape(count, down * high, across * wide)
    return joined[:, :rows, :columns].reshape(shape)


def fit(blocks: Tensor, fmt: Format, *, partial: bool) -> Parameters:
    """Fit the scales and other parameters of every block, as the format prescribes."""
    if fmt.statistic in SEARCHED:
        return _fit_by_search(blocks, fmt)
    if fmt.statistic not in FITS:
        return _fit_by_reference(blocks, fmt, partial=partial)
    p = FITS[fmt.statistic](blocks, fmt)
    if partial:
        p.scale[-1] = p.scale[-1].clamp(min=fmt.floor)
    for x in (p.read_scale, p.read_low):
        if x is not None and not torch.isfinite(x).all():
            raise ValueError(f"the range of a block must be a finite {fmt.storage} in {fmt.name}, got inf")
    return p


def _fit_by_search(blocks: Tensor, fmt: Format) -> Parameters:
    """Fit super-blocks by the kernel of the audit, on the CPU: the numbers are those of the reference."""
    grids = search_grids(blocks.cpu().numpy().reshape(-1), fmt)
    step, low = (torch.from_numpy(x).to(blocks.device) for x in (grids.scale, grids.low))
    each = blocks.numel() // len(step)
    step, low = (x.repeat_interleave(each).reshape(blocks.shape) for x in (step, low))
    return Parameters(step, torch.zeros_like(step), low, step, low)


def _fit_by_reference(blocks: Tensor, fmt: Format, *, partial: bool) -> Parameters:
    grid = fit_grid(blocks.cpu().numpy(), fmt, count=blocks.numel() - partial)
    encoder = grid.encoder or grid

    def tensor(x: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(blocks.device)

    low, read_low = (None if g.low is None else tensor(g.low) for g in (encoder, grid))
    return Parameters(tensor(encoder.scale), tensor(encoder.zero), low, tensor(grid.scale), read_low)


def _fit_absmax(blocks: Tensor, fmt: Format) -> Parameters:
    return _symmetric(blocks.abs().amax(1, keepdim=True), fmt)


def _fit_signed_absmax(blocks: Tensor, fmt: Format) -> Parameters:
    return _symmetric(blocks.gather(1, blocks.abs().argmax(1, keepdim=True)), fmt)


def _symmetric(statistic: Tensor, fmt: Format) -> Parameters:
    if fmt.arithmetic == "multiply":
        scale = statistic
    else:
        scale = SCALE_RULES[fmt.scale_rule](statistic, fmt)
    return _stored(scale, torch.zeros_like(scale), None, fmt)


def _fit_range(blocks: Tensor, fmt: Format) -> Parameters:
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / _float32(fmt.divisor)
    scale = scale.clamp(min=fmt.least_scale) if fmt.least_scale else scale
    distance = -low / scale
    lowest, top = fmt.levels[0], fmt.levels[-1]
    if fmt.zero_first:
        start = lowest + torch.nan_to_num(distance, nan=0.0, posinf=math.inf)
        zero = torch.round(start.clamp(max=top))
    else:
        whole = torch.nan_to_num(torch.round(distance), nan=0.0, posinf=0.0)
        zero = (lowest + whole).clamp(max=top)
    return _stored(_replace_empty(scale, fmt), zero, None, fmt)


def _fit_min_max(blocks: Tensor, fmt: Format) -> Parameters:
    low = blocks.amin(1, keepdim=True)
    scale = (blocks.amax(1, keepdim=True) - low) / _float32(fmt.divisor)
    return _stored(scale, torch.zeros_like(scale), low, fmt)


def _fit_hqq(blocks: Tensor, fmt: Format) -> Parameters:
    low = blocks.amin(1, keepdim=True)
    spread = blocks.amax(1, keepdim=True) - low
    inverse = spread.reciprocal() * fmt.divisor
    inverse = torch.where(spread <= float(LEAST_RANGE), 1.0, inverse)
    inverse = inverse.clamp(max=float(LARGEST_INVERSE))
    return Parameters(inverse, -low * inverse, None, inverse.reciprocal(), None)


def _fit_nothing(blocks: Tensor, fmt: Format) -> Parameters:
    scale = torch.ones(len(blocks), 1, device=blocks.device)
    return _stored(scale, torch.zeros_like(scale), None, fmt)


FITS: Mapping[str, Callable[[Tensor, Format], Parameters]] = {
    "absmax": _fit_absmax,
    "signed-absmax": _fit_signed_absmax,
    "range": _fit_range,
    "min-max": _fit_min_max,
    "hqq": _fit_hqq,
    "none": _fit_nothing,
}


def _stored(scale: Tensor, zero: Tensor, low: Tensor | None, fmt: Format) -> Parameters:
    if fmt.storage == "float32":
        return Parameters(scale, zero, low, scale, low)
    read_low = None if low is None else low.half().float()
    return Parameters(scale, zero, low, scale.half().float(), read_low)


def _quotient(statistic: Tensor, fmt: Format) -> Tensor:
    scale = statistic / _float32(fmt.divisor)
    scale = scale.clamp(min=fmt.least_scale) if fmt.least_scale else scale
    return _replace_empty(scale, fmt)


def _replace_empty(scale: Tensor, fmt: Format) -> Tensor:
    return torch.where(scale == 0, fmt.empty_scale, scale) if fmt.empty_scale else scale


def _power_of_two(absmax: Tensor, fmt: Format, *, up: bool = False) -> Tensor:
    mantissa, exponent = torch.frexp(absmax)
    exponent = exponent - 1
    if up:
        exponent = exponent + (mantissa >= scales.LARGEST_MANTISSA / 2)
    lowest, highest = scales.E8M0_EXPONENTS
    exponent = torch.where(absmax > 0, exponent, lowest) - int(math.log2(fmt.divisor))
    return torch.ldexp(torch.ones_like(absmax, dtype=torch.float64), exponent.clamp(lowest, highest)).float()


def _float8_of_tensor(absmax: Tensor, fmt: Format) -> Tensor:
    tensor_scale = absmax.max().clamp(min=TINY).reciprocal() * fmt.tensor_range
    tensor_scale = torch.nan_to_num(tensor_scale, posinf=1.0)
    scale = (tensor_scale * (absmax / _float32(fmt.divisor))).clamp(max=scales.E4M3.levels[-1])
    return _replace_empty(scale.to(torch.float8_e4m3fn).float(), fmt) / tensor_scale


SCALE_RULES: Mapping[str, Callable[[Tensor, Format], Tensor]] = {
    "quotient": _quotient,
    "power of two": _power_of_two,
    "power of two, up": lambda absmax, fmt: _power_of_two(absmax, fmt, up=True),
    "float8 of tensor": _float8_of_tensor,
}


def _float32(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)


def _ratio(blocks: Tensor, p: Parameters, fmt: Format, *, partial: bool) -> Tensor:
    shifted = blocks if p.low is None else blocks - p.low
    ratio, usable = ARITHMETICS[fmt.arithmetic](shifted, p.scale, fmt)
    if partial:
        ratio[-1] = blocks[-1] / p.scale[-1].clamp(min=fmt.floor)
    return torch.where(usable, ratio, 0.0)


def _multiply(blocks: Tensor, scale: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    scale = scale.clamp(min=fmt.floor) if fmt.floor else scale
    reciprocal = scale.reciprocal() * fmt.divisor
    return blocks * reciprocal, torch.isfinite(reciprocal)


def _reciprocal(blocks: Tensor, scale: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    reciprocal = scale.reciprocal()
    return blocks * reciprocal, torch.isfinite(reciprocal)


ARITHMETICS: Mapping[str, Callable[[Tensor, Tensor, Format], tuple[Tensor, Tensor]]] = {
    "divide": lambda blocks, scale, fmt: (blocks / scale, scale != 0),
    "multiply": _multiply,
    "reciprocal": _reciprocal,
    "inverse": lambda blocks, scale, fmt: (blocks * scale, torch.isfinite(scale)),
}


def _index(number: Tensor, fmt: Format) -> Tensor:
    return (number.clamp(fmt.levels[0], fmt.levels[-1]) - fmt.levels[0]).long()


def _half_even(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    return _index(torch.round(ratio + zero) if fmt.zero_first else torch.round(ratio) + zero, fmt)


def _half_up(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    return _index(torch.trunc(ratio + zero + (0.5 - fmt.levels[0])) + fmt.levels[0], fmt)


def _half_away(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    whole = ratio.abs().floor()
    return _index(torch.copysign(whole + (ratio.abs() - whole >= 0.5), ratio) + zero, fmt)


def _half_lower(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    return torch.bucketize(ratio + zero, torch.from_numpy(fmt.thresholds).to(ratio.device))


def _half_even_label(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    thresholds, even = (torch.from_numpy(x).to(ratio.device) for x in (fmt.thresholds, fmt.even_labels))
    lower, upper = (torch.bucketize(ratio + zero, thresholds, right=r) for r in (False, True))
    return torch.where(even[lower], lower, upper)


def _dither(ratio: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    below = torch.floor(ratio)
    up = ratio - below >= 1 - torch.from_numpy(dithers(tuple(ratio.shape), fmt.seed)).to(ratio.device)
    return _index(below + up + zero, fmt)


ROUNDINGS: Mapping[str, Callable[[Tensor, Tensor, Format], Tensor]] = {
    "half-even": _half_even,
    "half-up": _half_up,
    "half-away": _half_away,
    "half-lower": _half_lower,
    "half-even-label": _half_even_label,
    "dither": _dither,
}

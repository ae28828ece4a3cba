"""Values of compressed-tensors 0.19.0 on the CPU, bit for bit: integers, FP8, MXFP4 and NVFP4.

Not installed by default: `make conformance` runs it, in an environment of its own (`requirements-conformance.txt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.strategies import tensors

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="compressed-tensors runs on torch")
library = pytest.importorskip("compressed_tensors.quantization", reason="defines these formats")
helpers = pytest.importorskip("compressed_tensors.quantization.utils", reason="as above")
forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward", reason="as above")

INTEGERS = {
    f"int{bits}-{block}-ct{rule}": {"num_bits": bits, "type": "int", "symmetric": rule == ""}
    for bits in (2, 3, 4, 8)
    for block in ("g32", "row", "tensor")
    for rule in ("", "-asym")
}
FLOAT8 = {f"fp8-{block}": {"num_bits": 8, "type": "float"} for block in ("g32", "row", "tensor")}
MICROSCALED = {
    "mxfp4-b32-ct": {"num_bits": 4, "type": "float", "scale_dtype": "uint8"},
    "nvfp4": {"num_bits": 4, "type": "float", "scale_dtype": "float8_e4m3fn"},
}
TILES = {"fp8-b16x32": {"num_bits": 8, "type": "float"}, "fp8-b128x128": {"num_bits": 8, "type": "float"}}
SETTINGS: dict[str, dict[str, Any]] = {**INTEGERS, **FLOAT8, **TILES, **MICROSCALED}


def arguments(name: str) -> Any:
    """The library's description of the format."""
    fmt, settings = format_named(name), dict(SETTINGS[name])
    if "scale_dtype" in settings:
        settings["scale_dtype"] = settings["zp_dtype"] = getattr(torch, settings["scale_dtype"])
    if fmt.tile is not None:
        return library.QuantizationArgs(strategy="block", block_structure=list(fmt.tile), **settings)
    strategy = {"group": "group", "row": "channel", "tensor": "tensor"}[fmt.block]
    if name == "nvfp4":
        strategy = "tensor_group"
    return library.QuantizationArgs(strategy=strategy, group_size=fmt.block_size, **settings)


def library_values(w: NDArray[Any], name: str) -> NDArray[Any]:
    fmt, args = format_named(name), arguments(name)
    x = torch.from_numpy(w.copy())
    if fmt.tile is not None:
        return tiled_values(x, args)
    grouped = x.reshape(len(x), -1, fmt.block_size or x.shape[1])
    low, high = grouped.amin(-1), grouped.amax(-1)
    if fmt.block == "tensor":
        low, high = low.min(), high.max()
    tensor_scale = helpers.generate_gparam(x.min(), x.max()) if name == "nvfp4" else None
    scale, zero = helpers.calculate_qparams(low, high, args, global_scale=tensor_scale)
    values = forward.fake_quantize(x, scale, zero, args, global_scale=tensor_scale)
    return np.asarray(values.numpy())


def tiled_values(x: torch.Tensor, args: Any) -> NDArray[Any]:
    """The range of each tile as it stands in the matrix, by slices; the library pads and cuts by itself."""
    high, wide = args.block_structure
    tiles = [[x[i : i + high, j : j + wide] for j in range(0, x.shape[1], wide)] for i in range(0, x.shape[0], high)]
    ends = [torch.stack([torch.stack([end(tile) for tile in row]) for row in tiles]) for end in (torch.min, torch.max)]
    scale, zero = helpers.calculate_qparams(*ends, args)
    return np.asarray(forward.fake_quantize(x, scale, zero, args).numpy())


def assert_same(w: NDArray[Any], name: str) -> None:
    """The two zeros of a float count as one."""
    assert np.array_equal(library_values(w, name), round_trip(w, format_named(name)))


@pytest.mark.parametrize("size", [1e-30, 1e-5, 0.02, 30.0])
@pytest.mark.parametrize("name", SETTINGS)
def test_round_trip__is_compressed_tensors_on_weights_and_outliers(name: str, size: float) -> None:
    rng = rng_for(name, size)
    w = (size * rng.normal(size=(24, 128))).astype(np.float32)
    w[1] *= rng.standard_t(2, size=128).astype(np.float32)
    w[2, 32:64] = 0
    w[4] = np.abs(w[4])
    w[5] = -np.abs(w[5]) - np.float32(size)
    w[7, ::32] = 40 * size
    assert_same(w, name)


@pytest.mark.parametrize("name", SETTINGS)
def test_round_trip__is_compressed_tensors_at_ties(name: str) -> None:
    """Thresholds, and one ulp to either side, in blocks of step 1."""
    fmt, rng = format_named(name), rng_for(name, "ties")
    shape = (64, 128)
    v = rng.choice(fmt.thresholds, shape).astype(np.float32)
    towards = rng.choice([-np.inf, 0, np.inf], shape).astype(np.float32)
    w = np.where(towards == 0, v, np.nextafter(v, towards)).astype(np.float32)
    if fmt.statistic == "range":
        w[:, ::32], w[:, 1::32] = fmt.levels[0], fmt.levels[-1]
    else:
        w[:, ::32] = min(fmt.divisor, fmt.levels[-1]) if fmt.overhang > 1.5 else fmt.divisor
    assert_same(w, name)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (129, 127), (127, 129), (256, 128), (300, 260)])
@pytest.mark.parametrize("name", TILES)
def test_round_trip__is_compressed_tensors_where_an_edge_cuts_tiles(name: str, shape: tuple[int, int]) -> None:
    rng = rng_for(name, shape)
    w = rng.normal(0, 0.02, shape).astype(np.float32) * np.exp(2 * rng.normal(size=(shape[0], 1))).astype(np.float32)
    w[rng.random(shape) < 0.01] *= np.float32(100)
    assert_same(w, name)
    w[:129, :] = 0
    assert_same(w, name)


@given(st.data(), st.sampled_from(sorted(SETTINGS)))
def test_round_trip__is_compressed_tensors_on_hard_blocks(data: st.DataObject, name: str) -> None:
    """Whole blocks; magnitudes above 2^-60, or 0: elsewhere see the next tests."""
    w = data.draw(tensors(format_named(name), whole_blocks=True))
    assert_same(np.where(np.abs(w) < 2.0**-60, np.float32(0), w), name)


@pytest.mark.parametrize("name", [n for n in SETTINGS if not n.endswith("-asym")])
def test_round_trip__is_compressed_tensors_on_subnormals(name: str) -> None:
    rng = rng_for(name, "subnormal")
    w = np.ldexp(rng.integers(-300, 301, (16, 32)), -149).astype(np.float32)
    assert_same(w, name)


@pytest.mark.parametrize("name", ["int4-g32-ct", "int4-g32-ct-asym", "fp8-g32", "mxfp4-b32-ct", "nvfp4"])
def test_compressed_tensors__refuses_partial_groups(name: str) -> None:
    """There is nothing to conform to: the reference pads them with zeros, which change no parameter."""
    fmt = format_named(name)
    w, size = rng_for(name, "partial").normal(size=(4, 40)).astype(np.float32), fmt.block_size
    assert size is not None
    scale = torch.ones(4, -(-40 // size))
    tensor_scale = torch.ones(1) if name == "nvfp4" else None
    with pytest.raises(ValueError, match="divis"):
        forward.fake_quantize(torch.from_numpy(w), scale, 0 * scale, arguments(name), global_scale=tensor_scale)
    padded = np.pad(w, ((0, 0), (0, -40 % size)))
    assert np.array_equal(round_trip(w, fmt), round_trip(padded, fmt)[:, :40])

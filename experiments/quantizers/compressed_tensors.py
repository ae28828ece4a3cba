"""Formats by compressed-tensors on the CPU, which llm-compressor writes and vLLM reads: integers, FP8, MXFP4 and NVFP4.

ct_values(torch.randn(8, 64), "int4-g64-ct")
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.quantizers.quantizer import by_tensor
from unforgotten.records.extras import need
from unforgotten.theory.formats.names import Format, format_named

if TYPE_CHECKING:
    from torch import Tensor

REQUIREMENT = "compressed-tensors==0.19.0"
FORMATS = {
    "int{2..8}-{tensor|row|gN}-ct[-asym]": "integers",
    "fp8-{tensor|row|gN}": "FP8 E4M3",
    "fp8-bNxM": "FP8 E4M3, tiles of N rows and M columns",
    "mxfp4-b32-ct": "MXFP4, groups of 32 with a power of two",
    "nvfp4": "NVFP4, groups of 16 with an E4M3 scale",
}
NAMES = r"int[2-8]-(tensor|row|g[1-9]\d*)-ct(-asym)?|fp8-(tensor|row|g[1-9]\d*|b[1-9]\d*x[1-9]\d*)|mxfp4-b32-ct|nvfp4"


def ct_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Raises:
        ValueError: compressed-tensors is missing, or has no such format, or a row is no multiple of the group, or a weight is
            not finite.
    """
    fmt = format_named(ct_ours(name))
    need(REQUIREMENT, "compressed_tensors")
    import torch

    fake_quantize = import_module("compressed_tensors.quantization.lifecycle.forward").fake_quantize
    generate_gparam = import_module("compressed_tensors.quantization.utils").generate_gparam

    x = w.detach().float().reshape(-1, w.shape[-1])
    if not torch.isfinite(x).all():
        raise ValueError(f"weights must be finite to be quantized to ct:{name}, got nan or inf")
    whole = generate_gparam(x.min(), x.max()) if name == "nvfp4" else None
    scale, zero, args = fitted(x, fmt, whole)
    values: Tensor = fake_quantize(x, scale, zero, args, global_scale=whole)
    return values.float().reshape(w.shape)


def fitted(x: Tensor, fmt: Format, whole: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
    """Return scales, zero points and the library's description of the format.

    Args:
        x: weights, float32 (rows, columns).
        fmt: the format.
        whole: scale of the whole tensor, for NVFP4.

    Raises:
        ValueError: a row is no multiple of the group.
    """
    from unforgotten.experiments.quantizers.torch_path import to_blocks

    calculate_qparams = import_module("compressed_tensors.quantization.utils").calculate_qparams

    if fmt.tile is not None:
        args = arguments_of(fmt)
        tiles = to_blocks(x, fmt)  # an edge is filled with zeros, which a range contains anyway
        low, high = (end.reshape(-(-x.shape[0] // fmt.tile[0]), -1) for end in (tiles.amin(-1), tiles.amax(-1)))
        return *calculate_qparams(low, high, args), args
    if fmt.block_size is not None and x.shape[1] % fmt.block_size:
        raise ValueError(f"ct:{fmt.name} takes rows of whole groups of {fmt.block_size}, got columns={x.shape[1]}")
    groups = x.reshape(len(x), -1, fmt.block_size or x.shape[1])
    low, high = groups.amin(-1), groups.amax(-1)
    if fmt.block == "tensor":
        low, high = low.min(), high.max()
    args = arguments_of(fmt)
    return *calculate_qparams(low, high, args, global_scale=whole), args


def ct_ours(name: str) -> str:
    """Return the name of the format of ours with the same values: the same name.

    Raises:
        ValueError: compressed-tensors has no such format.
    """
    if not re.fullmatch(NAMES, name):
        raise ValueError(f"format must be one of {', '.join(FORMATS)} for ct:, got {name!r}")
    return name


def arguments_of(fmt: Format) -> Any:
    """Return the library's description of a format."""
    import torch

    QuantizationArgs = import_module("compressed_tensors.quantization").QuantizationArgs

    if fmt.tile is not None:
        return QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=list(fmt.tile))
    kinds = {"group": "group", "row": "channel", "tensor": "tensor"}
    settings: dict[str, Any] = {"num_bits": fmt.bits, "strategy": kinds[fmt.block], "group_size": fmt.block_size}
    if fmt.name.startswith("int"):
        return QuantizationArgs(type="int", symmetric=not fmt.zero_point, **settings)
    stored = {"mxfp4-b32-ct": torch.uint8, "nvfp4": torch.float8_e4m3fn}.get(fmt.name)
    if stored is not None:
        settings |= {"scale_dtype": stored, "zp_dtype": stored}
    if fmt.name == "nvfp4":
        settings["strategy"] = "tensor_group"
    return QuantizationArgs(type="float", **settings)


QUANTIZERS = (by_tensor("ct", None, ct_values, ours=ct_ours, formats=FORMATS, packages=(REQUIREMENT,)),)

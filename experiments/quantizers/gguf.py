"""Formats of llama.cpp by the `gguf` package: values are read from the bytes that a GGUF file would hold.

The package quantizes Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 itself. Of Q3_K, Q4_K, Q5_K and Q6_K it only reads bytes: those are of the codec in
`theory/formats/kquants.py`, which `verification/conformance` holds to llama.cpp's own, byte for byte.

    gguf_values(torch.randn(8, 256), "q4_k")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.experiments.quantizers.quantizer import by_tensor
from unforgotten.records.extras import need
from unforgotten.theory.formats.kquants import SUPER_BLOCK, KBlocks, q3_k, q4_k, q5_k, q6_k

if TYPE_CHECKING:
    from torch import Tensor

OWN = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")  # that the package quantizes itself, in blocks of 32
BLOCK = 32


def gguf_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Raises:
        ValueError: gguf is missing, or the format is none of these, or a row is no multiple of the block, or a scale
            overflows float16.
    """
    import torch

    gguf_ours(name)
    need("unforgotten[gguf]", "gguf")
    size = BLOCK if name in OWN else SUPER_BLOCK
    if w.shape[-1] % size:
        raise ValueError(f"gguf:{name} takes rows of whole blocks of {size}, got columns={w.shape[-1]}")
    x = np.ascontiguousarray(w.detach().float().numpy())
    if not np.isfinite(x).all():
        raise ValueError(f"weights must be finite to be quantized to gguf:{name}, got nan or inf")
    values = torch.from_numpy(read_bytes(stored_bytes(x, name), name)).reshape(w.shape)
    if not torch.isfinite(values).all():
        raise ValueError(f"the range of a block must be a finite float16 in gguf:{name}, got inf")
    return values


def stored_bytes(x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Return the bytes of a tensor in a GGUF file, (rows, bytes); arguments as of `gguf_values`."""
    if name in K_QUANTS:
        quantize, pack = K_QUANTS[name]
        return pack(quantize(x.reshape(-1, SUPER_BLOCK))).reshape(len(x.reshape(-1, x.shape[-1])), -1)
    from gguf import GGMLQuantizationType, quants

    with np.errstate(all="ignore"):  # 1 / 0 in a block of zeros; what overflows is refused above
        found: NDArray[np.uint8] = quants.quantize(x.reshape(-1, x.shape[-1]), GGMLQuantizationType[name.upper()])
    return found


def read_bytes(stored: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """Return the values of the bytes of a tensor, float32, as the package reads them."""
    from gguf import GGMLQuantizationType, quants

    with np.errstate(all="ignore"):
        values: NDArray[np.float32] = quants.dequantize(stored, GGMLQuantizationType[name.upper()])
    return values


def gguf_ours(name: str) -> str:
    """Return the name of the format of ours with the same values: the same name.

    Raises:
        ValueError: it is none of these formats.
    """
    if name not in (*OWN, *K_QUANTS):
        raise ValueError(f"format must be one of {', '.join((*OWN, *K_QUANTS))} for gguf, got {name!r}")
    return name


def pack_q3_k(k: KBlocks) -> NDArray[Any]:
    """Return upper bits of the codes, their lower 2 bits, 6-bit scales (upper 2 bits of four after all lower 4), d."""
    codes = k.codes.reshape(-1, 2, 4, 32)
    upper = np.bitwise_or.reduce((k.codes.reshape(-1, 8, 32) >> 2) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    lower = np.bitwise_or.reduce((codes & 3) << np.arange(0, 8, 2, dtype=np.uint8)[:, None], axis=2).reshape(-1, 64)
    scales = (k.scales + 32).astype(np.uint8)
    nibbles = (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4)
    pairs = (scales.reshape(-1, 4, 4) >> 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.hstack([upper, lower, nibbles, np.bitwise_or.reduce(pairs, axis=1), k.d[:, None].view(np.uint8)])


def pack_q4_k(k: KBlocks) -> NDArray[Any]:
    """Return d, dmin, 6-bit scales and minima (upper 2 bits of the last four above the first four), two codes a byte."""
    return np.hstack([_units(k), _nibbles(k.codes)])


def pack_q5_k(k: KBlocks) -> NDArray[Any]:
    """Return what Q4_K has, with the fifth bits of the codes before their nibbles: bit s of byte i is of weight 32 s + i."""
    fifth = np.bitwise_or.reduce((k.codes.reshape(-1, 8, 32) >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1)
    return np.hstack([_units(k), fifth, _nibbles(k.codes & 15)])


def _units(k: KBlocks) -> NDArray[Any]:
    scales, mins = k.scales.astype(np.uint8), k.mins.astype(np.uint8)
    first, last = scales[:, :4] | (scales[:, 4:] >> 4 << 6), mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    nibbles = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return np.hstack([k.d[:, None].view(np.uint8), k.dmin[:, None].view(np.uint8), first, last, nibbles])


def _nibbles(codes: NDArray[Any]) -> NDArray[Any]:
    pairs = codes.reshape(-1, 4, 2, 32)
    packed: NDArray[Any] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return packed


def pack_q6_k(k: KBlocks) -> NDArray[Any]:
    """Return lower 4 bits of the codes, upper 2 bits, int8 scales, d."""
    codes = k.codes.reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    lower = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    scales = k.scales.astype(np.int8).view(np.uint8)
    parts = [lower.reshape(-1, 128), upper.reshape(-1, 64), scales, k.d[:, None].view(np.uint8)]
    return np.hstack(parts)


K_QUANTS: Mapping[str, tuple[Callable[[NDArray[Any]], KBlocks], Callable[[KBlocks], NDArray[Any]]]] = {
    "q3_k": (q3_k, pack_q3_k),
    "q4_k": (q4_k, pack_q4_k),
    "q5_k": (q5_k, pack_q5_k),
    "q6_k": (q6_k, pack_q6_k),
}
QUANTIZERS = (
    by_tensor(
        "gguf",
        "gguf",
        gguf_values,
        ours=gguf_ours,
        formats={
            ", ".join(OWN): "blocks of 32, quantized and read by the package",
            "q3_k, q4_k, q5_k, q6_k": "super-blocks of 256, quantized by our codec and read by the package",
        },
        packages=("gguf",),
    ),
)

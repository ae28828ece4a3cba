"""Libraries, and our own reference, as described quantizers.

`unforgotten verify --quantizer unforgotten.verification.contracts.libraries:NAME` judges one.

Every adapter is a factory, so that a library is imported when it is asked for and named when it is missing.

Takes the kind and the size of a block; gives a described quantizer.

>>> reference("int4-g32").block_size
32
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.contracts.described import Quantizer, claiming

Array = NDArray[Any]
PIP: Mapping[str, str] = {
    "torch": "torch==2.13.0",
    "bitsandbytes": "bitsandbytes==0.50.2",
    "torchao": "torchao==0.18.0",
    "hqq": "hqq==0.2.8.post1",
}


def library(module: str) -> Any:
    """Import a module of a library.

    Raises:
        ValueError: the library is missing.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name if error.name and error.name in PIP else top
        raise ValueError(f"{missing} is missing: pip install '{PIP[missing]}'") from error


def reference(name: str) -> Quantizer:
    """Return our numpy reference of a format, with everything that the format claims."""
    fmt = format_named(name)
    return claiming(f"reference {name}", name, lambda w: round_trip(w, fmt), codes=lambda w: quantize(w, fmt)[0])


def bnb_4bit(kind: str, size: int = 64) -> Quantizer:
    """Describe NF4 or FP4 of bitsandbytes, by flat blocks.

    The tensor is quantized as (blocks, size): where the columns are no multiple of the block, `dequantize_4bit` uses
    the wrong absmax on AVX-512.
    """
    torch, functional = library("torch"), library("bitsandbytes.functional")

    def values(w: Array) -> Array:
        packed, state, count = _bnb_packed(torch, functional, w, kind, size)
        pad = -count % size
        codes = np.pad(_nibbles(packed)[:count], (0, pad))
        whole = torch.from_numpy(codes[::2] << 4 | codes[1::2]).reshape(-1, 1)
        state.shape, state.dtype = torch.Size((len(codes) // size, size)), torch.float32
        return functional.dequantize_4bit(whole, state).numpy().reshape(-1)[:count].reshape(w.shape)

    fmt = format_named(f"{kind}-b{size}")
    index = np.argsort(fmt.labels)

    def codes(w: Array) -> Array:
        packed, _, count = _bnb_packed(torch, functional, w, kind, size)
        return index[_nibbles(packed)[:count]].reshape(w.shape)

    return claiming(f"bitsandbytes {kind}, blocks of {size}", fmt.name, values, codes=codes)


def bnb_double(kind: str, size: int = 64) -> Quantizer:
    """Describe NF4 or FP4 of bitsandbytes with nested absmax: every block depends on the mean absmax of all.

    No format of ours has the name of it; `double_quant` of the theory has its bits, see conformance.
    """
    torch, functional = library("torch"), library("bitsandbytes.functional")

    def values(w: Array) -> Array:
        whole = torch.from_numpy(np.pad(w.ravel(), (0, -w.size % size)).reshape(-1, size))
        packed, state = functional.quantize_4bit(whole, blocksize=size, quant_type=kind, compress_statistics=True)
        return functional.dequantize_4bit(packed, state).numpy().ravel()[: w.size].reshape(w.shape)

    return Quantizer(
        values,
        name=f"bitsandbytes {kind}, blocks of {size}, nested",
        block="flat",
        block_size=size,
        independent=False,
        exact_zero=True,
    )


def _bnb_packed(torch: Any, functional: Any, w: Array, kind: str, size: int) -> tuple[Any, Any, int]:
    flat = torch.from_numpy(w.reshape(1, -1))
    packed, state = functional.quantize_4bit(flat, blocksize=size, quant_type=kind)
    return packed, state, w.size


def _nibbles(packed: Any) -> Array:
    pairs = packed.numpy().reshape(-1)
    return np.stack([pairs >> 4, pairs & 15], axis=1).ravel()


def bnb_int8() -> Quantizer:
    """Return the weights of LLM.int8 in bitsandbytes as a quantizer, row by row; activations are not in it."""
    torch, functional = library("torch"), library("bitsandbytes.functional")

    def values(w: Array) -> Array:
        codes, absmax, _ = functional.int8_vectorwise_quant(torch.from_numpy(w))
        return functional.int8_vectorwise_dequant(codes, absmax).numpy()

    def codes(w: Array) -> Array:
        return functional.int8_vectorwise_quant(torch.from_numpy(w))[0].numpy().astype(int) + 127

    return claiming("bitsandbytes int8, rows", "llmint8-row", values, codes=codes)


def torchao_intx(bits: int = 4, size: int = 32, *, symmetric: bool = True) -> Quantizer:
    """Describe integers of torchao, group by group, through the tensor that `IntxWeightOnlyConfig` makes."""
    torch = library("torch")
    intx = library("torchao.quantization").IntxUnpackedToInt8Tensor
    mapping = library("torchao.quantization.quant_primitives").MappingType
    kind = mapping.SYMMETRIC if symmetric else mapping.ASYMMETRIC

    def tensor(w: Array) -> Any:
        dtype = getattr(torch, f"int{bits}")
        return intx.from_hp(torch.from_numpy(w), (1, size), dtype, mapping_type=kind)

    return claiming(
        f"torchao int{bits}, groups of {size}{'' if symmetric else ', asymmetric'}",
        f"int{bits}-g{size}-ao{'' if symmetric else '-asym'}",
        lambda w: tensor(w).dequantize().numpy(),
        codes=lambda w: tensor(w).qdata.numpy().astype(int) + 2 ** (bits - 1),
        whole_blocks=True,
    )


def hqq_plain(bits: int = 4, size: int = 32) -> Quantizer:
    """Describe HQQ without its solver, in groups of the flattened tensor (axis 1)."""
    torch, hqq = library("torch"), library("hqq.core.quantize").Quantizer

    def packed(w: Array) -> tuple[Any, dict[str, Any]]:
        codes, meta = hqq.quantize(
            torch.from_numpy(w),
            nbits=bits,
            group_size=size,
            optimize=False,
            axis=1,
            device="cpu",
            bitpack=bits == 8 or (w.size // size) % 2 == 0,  # it packs halves: one group alone raises
        )
        return codes, {**meta, "compute_dtype": torch.float32}

    return claiming(
        f"hqq {bits} bits, groups of {size}",
        f"hqq{bits}-g{size}",
        lambda w: hqq.dequantize(*packed(w)).numpy(),
        whole_blocks=True,
    )


bnb_nf4 = partial(bnb_4bit, "nf4")
bnb_fp4 = partial(bnb_4bit, "fp4")
bnb_nf4_dq = partial(bnb_double, "nf4")
bnb_fp4_dq = partial(bnb_double, "fp4")
torchao_int8 = partial(torchao_intx, 8)
torchao_int4 = partial(torchao_intx, 4)
torchao_int4_asym = partial(torchao_intx, 4, symmetric=False)
hqq_int4 = partial(hqq_plain, 4)
hqq_int8 = partial(hqq_plain, 8)
ADAPTERS: Mapping[str, Callable[[], Quantizer]] = {
    "bnb_nf4": bnb_nf4,
    "bnb_fp4": bnb_fp4,
    "bnb_nf4_dq": bnb_nf4_dq,
    "bnb_fp4_dq": bnb_fp4_dq,
    "bnb_int8": bnb_int8,
    "torchao_int8": torchao_int8,
    "torchao_int4": torchao_int4,
    "torchao_int4_asym": torchao_int4_asym,
    "hqq_int4": hqq_int4,
    "hqq_int8": hqq_int8,
}

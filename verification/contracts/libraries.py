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

from numpy.typing import NDArray

from unforgotten.records.extras import missing
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
        package = error.name if error.name and error.name in PIP else top
        raise ValueError(missing(package, PIP[package])) from error


def reference(name: str) -> Quantizer:
    """Return our numpy reference of a format, with everything that the format claims."""
    fmt = format_named(name)
    return claiming(f"reference {name}", name, lambda w: round_trip(w, fmt), codes=lambda w: quantize(w, fmt)[0])


def bnb_4bit(kind: str, size: int = 64) -> Quantizer:
    """NF4 or FP4 of bitsandbytes, by flat blocks: the functions with which a run quantizes."""
    torch, bnb = library("torch"), _bitsandbytes()
    return claiming(
        f"bitsandbytes {kind}, blocks of {size}",
        f"{kind}-b{size}",
        lambda w: bnb.values_4bit(torch.from_numpy(w), kind, size).numpy(),
        codes=lambda w: bnb.codes_4bit(torch.from_numpy(w), kind, size).numpy(),
    )


def bnb_double(kind: str, size: int = 64) -> Quantizer:
    """Describe NF4 or FP4 of bitsandbytes with nested absmax: every block depends on the mean absmax of all.

    Ours, nf4-bN-dq, has another mean of absmaxes, summed exactly; `double_quant` of the theory has its bits, see conformance.
    """
    torch, bnb = library("torch"), _bitsandbytes()
    return Quantizer(
        lambda w: bnb.values_nested(torch.from_numpy(w), kind, size).numpy(),
        name=f"bitsandbytes {kind}, blocks of {size}, nested",
        block="flat",
        block_size=size,
        independent=False,
        exact_zero=True,
    )


def bnb_int8() -> Quantizer:
    """Return the weights of LLM.int8 in bitsandbytes as a quantizer, row by row; activations are not in it."""
    torch, bnb = library("torch"), _bitsandbytes()
    return claiming(
        "bitsandbytes int8, rows",
        "llmint8-row",
        lambda w: bnb.values_int8(torch.from_numpy(w)).numpy(),
        codes=lambda w: bnb.codes_int8(torch.from_numpy(w)).numpy(),
    )


def _bitsandbytes() -> Any:
    """Return our functions of bitsandbytes, once the library is known to be there."""
    from unforgotten.experiments.quantizers import bitsandbytes

    library("bitsandbytes.functional")
    return bitsandbytes


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

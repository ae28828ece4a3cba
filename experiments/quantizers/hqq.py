"""Formats by hqq on the CPU, for 2, 3, 4 and 8 bits: hqqB-gN; with -opt by its proximal solver, with -round of whole zero points.

`HQQLinear` with the settings of `BaseQuantizeConfig` computes with hqq4-gN-opt-round at 4 bits, with hqqB-gN-opt at others.

Called directly, as Transformers' `HqqConfig` raises on what it supports here.

    hqq_values(torch.randn(8, 64), "hqq4-g64")
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from unforgotten.experiments.quantizers.quantizer import by_tensor
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from torch import Tensor

REQUIREMENT = "hqq==0.2.8.post1"


def hqq_values(w: Tensor, name: str) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Raises:
        ValueError: hqq is missing, or has no such format, or a row is no multiple of the group.
    """
    bits, size, optimize, rounded = _settings(name)
    need(REQUIREMENT, "hqq")
    if w.shape[-1] % size:  # the library's groups would straddle rows
        raise ValueError(f"hqq:{name} takes rows of whole groups of {size}, got columns={w.shape[-1]}")
    import torch

    Quantizer = import_module("hqq.core.quantize").Quantizer

    codes, meta = Quantizer.quantize(
        w.detach().float().clone(),
        nbits=bits,
        group_size=size,
        optimize=optimize,
        round_zero=rounded,
        axis=1,
        device="cpu",
        bitpack=False,  # packing raises on a single group, and changes no value
        compute_dtype=torch.float32,
    )
    values: Tensor = Quantizer.dequantize(codes, {**meta, "compute_dtype": torch.float32})
    return values.reshape(w.shape)


def hqq_ours(name: str) -> str | None:
    """Return the format of ours with the same values: the same name.

    None with the solver, whose sums have another order, and with whole zero points, which no format describes.

    Raises:
        ValueError: hqq has no such format.
    """
    _, _, optimize, rounded = _settings(name)
    return None if optimize or rounded else name


def _settings(name: str) -> tuple[int, int, bool, bool]:
    match = re.fullmatch(r"hqq([2348])-g([1-9]\d*)(-opt)?(-round)?", name)
    if match is None:
        raise ValueError(f"format must be hqqB-gN[-opt][-round] of 2, 3, 4 or 8 bits for hqq, got {name!r}")
    return int(match[1]), int(match[2]), match[3] is not None, match[4] is not None


QUANTIZERS = (
    by_tensor(
        "hqq",
        None,
        hqq_values,
        ours=hqq_ours,
        formats={"hqq{2,3,4,8}-gN[-opt][-round]": "HQQ; -opt: with its proximal solver; -round: zero points are whole"},
        packages=(REQUIREMENT,),
    ),
)

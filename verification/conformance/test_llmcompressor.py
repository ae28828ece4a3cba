"""GPTQ of llmcompressor 0.14 on the CPU, bit for bit given its factor of the inverse Hessian.

The factor comes from torch: another LAPACK call rounds it otherwise, and then codes near a tie differ. Beyond a block of
128 columns the library multiplies matrices, whose sums a BLAS orders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import (
    GPTQ_RULES,
    GptqRule,
    calibration_hessian,
    column_order,
    fit_groups,
    gptq,
    round_columns,
)
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.verification.chance import rng_for
from unforgotten.verification.conformance.gptq_comparison import torch_factor
from unforgotten.verification.oracles import U32

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="llmcompressor runs on torch")
library = pytest.importorskip(
    "llmcompressor.modifiers.gptq.gptq_quantize", reason="the library that the rule is named after"
)
ct = pytest.importorskip("compressed_tensors.quantization", reason="llmcompressor's grids")

CASES = [
    (bits, symmetric, order)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for order in ("natural", "activation")
]


def problem(columns: int, case: object, *, shared: float = 2.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weights and a Hessian, of inputs with a `shared` direction: the more, the worse conditioned."""
    rng = rng_for("llmcompressor", columns, case)
    x = rng.normal(size=(2 * columns, columns)) + shared * rng.normal(size=(2 * columns, 1))
    x[:, columns // 3] = 0
    h = calibration_hessian(x).astype(np.float32)
    return rng.normal(0, 0.02, (8, columns)).astype(np.float32), h


def library_values(w: NDArray[Any], h: NDArray[Any], rule: GptqRule) -> NDArray[Any]:
    """The library's loop, with the scales that the reference fits."""
    grid = fit_groups(w, rule)
    half = 2 ** (rule.bits - 1)
    args = ct.QuantizationArgs(
        num_bits=rule.bits,
        symmetric=rule.symmetric,
        strategy="group",
        group_size=rule.group_size,
        actorder="weight" if rule.order == "activation" else None,
    )
    scale = torch.from_numpy(grid.scale[None, :, :: rule.group_size].copy())
    zero = torch.from_numpy(grid.zero[None, :, :: rule.group_size] - half).to(torch.int8)
    values, _, fallback = library.quantize_weight(
        torch.from_numpy(w[None].copy()), torch.from_numpy(h[None].copy()), scale, zero, None, args
    )
    assert not fallback.any()
    return np.asarray(values[0].numpy())


def reference_values(w: NDArray[Any], h: NDArray[Any], rule: GptqRule) -> NDArray[Any]:
    """The reference on the same factor. Dead columns, of diagonal 0, are last in the library's order."""
    order = column_order(np.diag(h), rule)
    grid = fit_groups(w, rule)
    grid = GroupGrid(grid.scale[:, order], grid.zero[:, order])
    alive = np.where(np.diag(h) == 0, np.float32(0), w)[:, order]
    factor = torch_factor(h[order][:, order], rule.damping)
    return round_columns(alive, factor, rule, grid).values[:, np.argsort(order)]


def rule_of(bits: int, symmetric: bool, order: Any) -> GptqRule:
    base = GPTQ_RULES["llmcompressor"]
    return replace(base, bits=bits, symmetric=symmetric, order=order, group_size=32)


@pytest.mark.parametrize(("bits", "symmetric", "order"), CASES)
def test_gptq__is_llmcompressors_within_a_block(bits: int, symmetric: bool, order: str) -> None:
    rule = rule_of(bits, symmetric, order)
    w, h = problem(128, (bits, symmetric, order))
    assert np.array_equal(reference_values(w, h, rule), library_values(w, h, rule))


@pytest.mark.parametrize(("bits", "symmetric", "order"), CASES)
def test_gptq__is_llmcompressors_at_its_own_damping_only(bits: int, symmetric: bool, order: str) -> None:
    """The comparison has power: another damping gives other values."""
    rule = rule_of(bits, symmetric, order)
    w, h = problem(128, (bits, symmetric, order))
    other = reference_values(w, h, replace(rule, damping=0.05))
    assert not np.array_equal(other, library_values(w, h, rule))


@pytest.mark.parametrize(("bits", "symmetric", "order"), CASES)
def test_gptq__agrees_with_llmcompressor_beyond_a_block(bits: int, symmetric: bool, order: str) -> None:
    """With its own factor, 256 columns: where a row differs, its first difference is a code at a tie."""
    rule = rule_of(bits, symmetric, order)
    w, h = problem(256, (bits, symmetric, order), shared=0.0)
    result = gptq(w, h, rule)
    differs = (result.values != library_values(w, h, rule))[:, result.order]
    ratio = (result.compensated / result.scale)[:, result.order]
    damped = h.astype(float) + (rule.damping * np.diag(h).mean() + result.dead) * np.eye(256)
    slack = 256 * U32 * np.linalg.cond(damped)  # a backward error of n roundings, through the inverse
    at_tie = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) <= slack
    first = np.take_along_axis(at_tie, differs.argmax(axis=1)[:, None], axis=1)[:, 0]
    assert slack < 0.01
    assert (first | ~differs.any(axis=1)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fit_compressed_tensors__has_the_librarys_scales(bits: int, symmetric: bool) -> None:
    w = rng_for("scales", bits, symmetric).normal(0, 0.02, (16, 64)).astype(np.float32)
    w[0], w[1] = np.abs(w[0]), 0
    rule = rule_of(bits, symmetric, "natural")
    grid = fit_groups(w, replace(rule, group_size=None))
    args = ct.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
    t = torch.from_numpy(w)
    scale, zero = ct.utils.calculate_qparams(t.amin(1, keepdim=True), t.amax(1, keepdim=True), args)
    assert np.array_equal(scale.numpy(), grid.scale[:, :1])
    assert np.array_equal(zero.numpy().astype(np.float32), grid.zero[:, :1] - 2 ** (bits - 1))

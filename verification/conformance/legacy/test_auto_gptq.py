"""GPTQ of auto-gptq 0.7.1 on the CPU, bit for bit given its factor of the inverse Hessian.

The class alone: its models refuse to run without a GPU, and the class calls `torch.cuda.synchronize` at its end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import GptqRule, calibration_hessian
from unforgotten.verification.conformance.gptq_comparison import (
    Library,
    Problem,
    assert_same,
    assert_same_up_to_ties,
    given_factor,
    problem,
    rule_named,
    well_conditioned_problem,
)
from unforgotten.verification.oracles import U32

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="auto-gptq runs on torch")
library = pytest.importorskip(
    "auto_gptq.quantization.gptq", reason="needs `make conformance-legacy`", exc_type=ImportError
)

Array = NDArray[Any]
CASES = [
    (bits, symmetric, order, static, size)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for order in ("natural", "activation")
    for static in (False, True)
    for size in (64, 128, None)
    if not (static and size is None)
]


rule_of = partial(rule_named, "auto-gptq")


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def library_result(p: Problem, rule: GptqRule) -> Library:
    layer = torch.nn.Linear(p.w.shape[1], len(p.w), bias=False)
    layer.weight.data = torch.from_numpy(p.w.copy())
    task = library.GPTQ(layer)
    task.quantizer.configure(rule.bits, perchannel=True, sym=rule.symmetric, mse=False)
    task.add_batch(torch.from_numpy(p.x)[None], None)
    h = task.H.clone().numpy()
    scale, zero, group = task.fasterquant(
        percdamp=rule.damping,
        group_size=rule.group_size or -1,
        actorder=rule.order == "activation",
        static_groups=rule.static,
    )
    parts = (layer.weight.data, scale, zero, group)
    return Library(h, *(np.asarray(a.numpy()) for a in parts))


@pytest.mark.parametrize(("bits", "symmetric", "order", "static", "size"), CASES)
def test_gptq__is_auto_gptqs_within_a_block(
    bits: int, symmetric: bool, order: str, static: bool, size: int | None
) -> None:
    rule = rule_of(bits, symmetric, order, static, size)
    p = problem(128, (bits, symmetric, order, static, size))
    theirs = library_result(p, rule)
    ours, _ = given_factor(p.w, theirs.h, rule)
    assert_same(ours, theirs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq__is_auto_gptqs_at_its_own_damping_only(symmetric: bool) -> None:
    """The comparison has power: gptqmodel's damping gives other values."""
    rule = rule_of(4, symmetric, "natural", False, 64)
    p = problem(128, ("damping", symmetric))
    theirs = library_result(p, rule)
    other, _ = given_factor(p.w, theirs.h, replace(rule, damping=0.05))
    assert not np.array_equal(other.values, theirs.values)


@pytest.mark.parametrize("columns", [200, 256])
@pytest.mark.parametrize(("bits", "symmetric", "order", "static", "size"), CASES)
def test_gptq__agrees_with_auto_gptq_beyond_a_block(
    bits: int, symmetric: bool, order: str, static: bool, size: int | None, columns: int
) -> None:
    rule = rule_of(bits, symmetric, order, static, size)
    p = well_conditioned_problem(columns, (bits, symmetric, order, static, size))
    theirs = library_result(p, rule)
    ours, rounding_order = given_factor(p.w, theirs.h, rule)
    compared = assert_same_up_to_ties(ours, rounding_order, theirs.values, theirs.h, rule)
    assert compared > 0.5


def test_calibration_hessian__is_auto_gptqs_but_for_counting_sequences() -> None:
    """It divides by sequences, not by tokens: a factor that changes no code, as damping is relative to the mean."""
    p = problem(64, "hessian")
    theirs = library_result(p, rule_of(4, True, "natural", False, 64)).h
    x = p.x.astype(np.float64)
    absolute = 2 * np.abs(x).T @ np.abs(x)
    # each input is scaled by sqrt(2), itself rounded: four roundings a product, and n - 1 sums
    slack = (len(x) + 4) * U32 * absolute
    assert (np.abs(theirs - len(x) * calibration_hessian(x)) <= slack).all()

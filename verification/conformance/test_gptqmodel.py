"""GPTQ and the packed file of gptqmodel 7.6.0 on the CPU, bit for bit given its factor of the inverse Hessian.

Not installed by default: `make conformance`. Its C++ packer is turned off, which takes minutes to compile.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.quantization import read_scheme
from unforgotten.theory.formats.gptq import GptqRule, calibration_hessian, fit_groups
from unforgotten.theory.formats.group_grids import encode_group
from unforgotten.verification.chance import rng_for
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

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # or it refuses two processors, see test_traps
os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="gptqmodel runs on torch")
pytest.importorskip("gptqmodel", reason="the library that the rule is named after")
library = pytest.importorskip("gptqmodel.quantization", reason="as above")
tasks = pytest.importorskip("gptqmodel.quantization.gptq", reason="as above")

Array = NDArray[Any]
ORDERS = ("natural", "activation", "group-aware")
# In group-aware order gptqmodel rounds to the static grids of the columns that stood there before: test_traps.
CASES = [
    (bits, symmetric, order, static, size)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for order in ORDERS
    for static in (False, True)
    for size in (32, 64, 128, None)
    if not (order == "group-aware" and (static or size is None)) and not (static and size is None)
]


rule_of = partial(rule_named, "gptqmodel")


def linear(w: Array) -> Any:
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    return layer


def config_of(rule: GptqRule) -> Any:
    return library.QuantizeConfig(
        bits=rule.bits,
        group_size=rule.group_size or -1,
        sym=rule.symmetric,
        desc_act=rule.order == "activation",
        act_group_aware=rule.order == "group-aware",
        static_groups=rule.static,
        damp_percent=rule.damping,
        fallback=None,
        offload_to_disk=False,
    )


def library_result(p: Problem, rule: GptqRule) -> Library:
    task = tasks.GPTQ(linear(p.w), config_of(rule))
    task.quantizer.configure(perchannel=True)
    task.add_batch(torch.from_numpy(p.x)[None], None)
    h = task.finalize_hessian().clone().numpy()
    values, scale, zero, group, *_ = task.quantize()
    return Library(h, *(np.asarray(a.numpy()) for a in (values, scale, zero, group)))


@pytest.mark.parametrize(("bits", "symmetric", "order", "static", "size"), CASES)
def test_gptq__is_gptqmodels_within_a_block(
    bits: int, symmetric: bool, order: str, static: bool, size: int | None
) -> None:
    """Values, scales and zero points. Groups of 32 and 64 are fitted to weights that have not moved yet, as there."""
    rule = rule_of(bits, symmetric, order, static, size)
    p = problem(128, (bits, symmetric, order, static, size))
    theirs = library_result(p, rule)
    ours, _ = given_factor(p.w, theirs.h, rule)
    assert_same(ours, theirs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "change",
    [{"damping": 0.01}, {"block": 32}, {"static": True}, {"group_size": 32}],
    ids=lambda change: next(iter(change)),
)
def test_gptq__is_gptqmodels_by_its_own_rule_only(change: dict[str, Any], order: str, symmetric: bool) -> None:
    """The comparison has power: another damping, block, fit or group gives other values. (Static only beyond a block.)"""
    columns = 256 if "static" in change else 128
    rule = rule_of(4, symmetric, order, False, 64)
    p = problem(columns, (order, symmetric))
    theirs = library_result(p, rule)
    other, _ = given_factor(p.w, theirs.h, replace(rule, **change))
    assert (np.abs(other.values - theirs.values) > 0.5 * other.scale).any()


@pytest.mark.parametrize("columns", [200, 256])
@pytest.mark.parametrize(("bits", "symmetric", "order", "static", "size"), [c for c in CASES if c[4] != 32])
def test_gptq__agrees_with_gptqmodel_beyond_a_block(
    bits: int, symmetric: bool, order: str, static: bool, size: int | None, columns: int
) -> None:
    """Also where the last group is partial."""
    rule = rule_of(bits, symmetric, order, static, size)
    p = well_conditioned_problem(columns, (bits, symmetric, order, static, size))
    theirs = library_result(p, rule)
    ours, rounding_order = given_factor(p.w, theirs.h, rule)
    compared = assert_same_up_to_ties(ours, rounding_order, theirs.values, theirs.h, rule)
    assert compared > 0.5


@pytest.mark.parametrize("columns", [64, 200])
def test_calibration_hessian__is_gptqmodels(columns: int) -> None:
    """2/n X'X in float32: n products, n - 1 sums and a quotient are rounded."""
    p = problem(columns, "hessian")
    theirs = library_result(p, rule_of(4, True, "natural", False, 32)).h
    x = p.x.astype(np.float64)
    slack = (len(x) + 1) * U32 * 2 / len(x) * (np.abs(x).T @ np.abs(x))
    assert (np.abs(theirs - calibration_hessian(x)) <= slack).all()


def hard_groups(bits: int, symmetric: bool) -> Array:
    """Groups of 32 whose codes tie at a step of 1, zero groups, one-sided groups and subnormal ones."""
    rng, top = rng_for("gptqmodel", bits, symmetric), 2**bits - 1
    w = rng.integers(-2 * top, 2 * top + 1, (32, 128)).astype(np.float32) / 4
    w[:, ::32], w[:, 1::32] = top / 2, -top / 2
    w[3], w[4, 32:64] = 0, 0
    w[5], w[6] = np.abs(w[5]), -np.abs(w[6])
    w[7] = np.ldexp(rng.integers(-300, 301, 128), -149)
    return w


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fit_gptq__is_gptqmodels_on_ties_and_on_zero_and_subnormal_groups(bits: int, symmetric: bool) -> None:
    """Its Quantizer on whole groups, without a Hessian."""
    w, rule = hard_groups(bits, symmetric), rule_of(bits, symmetric, "natural", False, 32)
    grid = fit_groups(w, rule)
    for start in range(0, 128, 32):
        quantizer = library.quantizer.Quantizer(qcfg=config_of(rule))
        quantizer.configure(perchannel=True)
        part = slice(start, start + 32)
        quantizer.find_params(torch.from_numpy(w[:, part].copy()), weight=True)
        theirs = quantizer.quantize(torch.from_numpy(w[:, part].copy())).numpy()
        own = type(grid)(grid.scale[:, part], grid.zero[:, part])
        codes = encode_group(w[:, part], own, bits)
        assert np.array_equal(quantizer.scale.numpy(), own.scale[:, :1])
        assert np.array_equal(quantizer.zero.numpy(), own.zero[:, :1])
        assert np.array_equal(own.scale * (codes - own.zero), theirs)


def packed(bits: int) -> tuple[dict[str, Array], Array, Array, Array, Array]:
    """What the library stores of known codes, and those codes, zero points, scales and its own dequantized weights."""
    layers = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    convert = pytest.importorskip("gptqmodel.utils.model").convert_gptq_v2_to_v1_format_module
    rng = rng_for("packed", bits)
    codes, group = rng.integers(0, 2**bits, (32, 128)), np.arange(128) // 32
    zeros = rng.integers(1, 2**bits, (32, 4))
    scales = rng.uniform(0.5, 1, (32, 4)).astype(np.float16).astype(np.float32)
    w = scales[:, group] * (codes - zeros[:, group]).astype(np.float32)
    module = layers.TorchLinear(
        bits=bits,
        group_size=32,
        sym=False,
        desc_act=False,
        in_features=128,
        out_features=32,
        bias=False,
        format=library.FORMAT.GPTQ,
    )
    tensors = [torch.from_numpy(a) for a in (scales, zeros.astype(np.float32), group.astype("i4"))]
    module.pack(linear(w), *tensors)
    values = module.eval().dequantize_weight().numpy()
    convert(module, config_of(rule_of(bits, False, "natural", False, 32)))
    names = ("qweight", "qzeros", "scales", "g_idx")
    stored = {f"layer.{n}": np.asarray(getattr(module, n).numpy()) for n in names}
    return stored, codes, zeros, scales, values


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_audit__reads_what_gptqmodel_packs(bits: int, tmp_path: Path) -> None:
    """w = scale (q - (qzero + 1)): files hold a zero point less one. Values are compared as the library's float16."""
    from safetensors.numpy import save_file

    stored, codes, zeros, scales, values = packed(bits)
    save_file(stored, tmp_path / "model.safetensors")
    stated = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": "gptq"}
    scheme = read_scheme(tmp_path / "config.json", stated)
    layer = LAYOUTS[scheme.layout].open(scheme, open_checkpoint(tmp_path), "layer")
    decoded = layer.decode(0, layer.units)
    group = np.arange(128) // 32
    assert np.array_equal(decoded.codes, codes.T)
    assert np.array_equal(decoded.values, (scales[:, group] * (codes - zeros[:, group])).T)
    assert np.array_equal(decoded.values.astype(np.float16), values)


def test_packed__is_wrong_by_a_step_without_the_one_of_the_zero_point(tmp_path: Path) -> None:
    """The comparison has power: read as gptq_v2, every value is one step higher."""
    from safetensors.numpy import save_file

    stored, _, _, scales, values = packed(4)
    save_file(stored, tmp_path / "model.safetensors")
    stated = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    scheme = read_scheme(tmp_path / "config.json", stated)
    layer = LAYOUTS[scheme.layout].open(scheme, open_checkpoint(tmp_path), "layer")
    steps = (layer.decode(0, layer.units).values - values) / scales[:, np.arange(128) // 32].T
    # float16 rounds 15 steps by 15/2048 at most
    assert (np.abs(steps - 1) <= 15 / 2048).all()

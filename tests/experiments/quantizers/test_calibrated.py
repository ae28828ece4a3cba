"""GPTQ and AWQ on the grids of our formats: what they reduce to, what they agree with, and the walk through a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")

from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.layer_inputs import Inputs, no_inputs, replace_in_order
from unforgotten.experiments.models.shell import Shell, linear_names, state_of
from unforgotten.experiments.quantizers.awq import awq_values, output_error, scaled_values
from unforgotten.experiments.quantizers.gptq import gptq_values
from unforgotten.experiments.quantizers.quantizer import Calibration
from unforgotten.experiments.quantizers.registry import quantize_state, text_of
from unforgotten.experiments.quantizers.torch_path import encode_tensor
from unforgotten.theory.formats.awq import AWQ_RULES, search_scales
from unforgotten.theory.formats.gptq import GptqRule, calibration_hessian, gptq
from unforgotten.theory.formats.names import format_named

MOST = max(1, settings.default.max_examples // 4) if settings.default else 1
"""Examples of a test whose every example quantizes two matrices column by column."""
FORMATS = ["int4-g64", "int4-row-asym", "int3-g64-ct-asym", "int4-tensor", "nf4-b64", "fp8-g64", "nvfp4", "q4_0"]
DOCUMENTS = [[1, 5, 9, 12, 7], [1, 8, 8, 3], [1, 30, 31, 32, 33], [], [1, 2, 3, 4]]


def weights(rng: np.random.Generator, rows: int = 8, columns: int = 192) -> Tensor:
    return torch.from_numpy(rng.normal(0, 0.02, (rows, columns)).astype(np.float32))


def inputs(rng: np.random.Generator, columns: int = 192, tokens: int = 400) -> Inputs:
    """Inputs of unequal sizes with a direction that they share, as those of language models have."""
    x = rng.normal(size=(tokens, columns)) + 2 * rng.normal(size=(tokens, 1))
    found = no_inputs(columns)
    found.add(torch.from_numpy(x * np.exp(0.5 * rng.normal(size=columns))))
    return found


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=2, heads=2), 0).eval()


@settings(max_examples=MOST)
@given(name=st.sampled_from(FORMATS), seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_gptq_without_correlations_is_plain_rounding_bit_for_bit(name: str, seed: int, scale: float) -> None:
    rng, fmt = np.random.default_rng(seed), format_named(name)
    w = weights(rng, 4, 128)
    plain = encode_tensor(w, fmt)[1]
    assert torch.equal(gptq_values(w, torch.eye(128, dtype=torch.float64) * scale, fmt), plain)
    diagonal = torch.from_numpy(rng.integers(0, 3, 128) * scale)  # columns that no input reached among them
    assert torch.equal(gptq_values(w, torch.diag(diagonal), fmt), plain)


@pytest.mark.parametrize("name", FORMATS)
def test_gptq_stays_on_the_grid_of_the_format(name: str) -> None:
    rng, fmt = np.random.default_rng(2), format_named(name)
    w = weights(rng)
    found = gptq_values(w, inputs(rng).hessian, fmt)
    plain = encode_tensor(w, fmt)[1]
    assert not torch.equal(found, plain)
    rows = w.shape[0] if fmt.block != "tensor" else 1
    size = fmt.block_size or w.numel() // rows
    for ours, theirs in zip(found.reshape(-1, size), plain.reshape(-1, size), strict=True):
        steps = 2**fmt.bits
        assert len(torch.unique(torch.cat([ours, theirs]))) <= steps


@pytest.mark.parametrize("name", ["int4-g64-ct", "int4-g64-ct-asym", "int8-row-ct", "int3-g64-ct-asym"])
def test_gptq_gives_the_codes_of_the_theory(name: str) -> None:
    """float64 there, float32 codes here: they differ where a weight is within 1e-7 of a tie, which none here is."""
    rng, fmt = np.random.default_rng(3), format_named(name)
    w, h = weights(rng), inputs(rng).hessian
    rule = GptqRule(
        fmt.bits, fmt.block_size, not name.endswith("asym"), static=True, damping=0.01, grid="compressed-tensors"
    )
    theirs = gptq(w.double().numpy(), h.numpy(), rule)
    ours = gptq_values(w, h, fmt).double().numpy()
    assert np.array_equal(np.rint(ours / theirs.scale + theirs.zero), theirs.codes)


def test_sums_of_inputs_are_the_hessian_of_the_theory() -> None:
    x = np.random.default_rng(0).integers(-9, 10, (64, 12)).astype(np.float64)
    found = no_inputs(12)
    for part in np.split(x, 4):
        found.add(torch.from_numpy(part).reshape(2, 8, 12).float())
    assert np.array_equal(found.hessian.numpy(), calibration_hessian(x))
    assert np.array_equal(found.means.numpy(), np.abs(x).mean(0))


def test_gptq_has_the_smaller_output_error_in_most_draws() -> None:
    """Measured, not a law: at most that of plain rounding in 60 of 60 draws, 0.18 of it in the median."""
    ratios = []
    for seed in range(60):
        rng, fmt = np.random.default_rng(seed), format_named(("int4-g64", "int3-g64-asym", "nf4-b64")[seed % 3])
        w, h = weights(rng), inputs(rng).hessian
        plain, found = encode_tensor(w, fmt)[1], gptq_values(w, h, fmt)
        ratios.append(output_error(w, found, h) / output_error(w, plain, h))
    assert np.mean(np.array(ratios) <= 1) > 0.9
    assert np.median(ratios) < 0.5


@given(name=st.sampled_from(["int4-g64", "int4-g64-asym", "int4-row", "nf4-b64"]), seed=st.integers(0, 2**32 - 1))
def test_awq_with_unit_scales_is_plain_rounding_bit_for_bit(name: str, seed: int) -> None:
    rng, fmt = np.random.default_rng(seed), format_named(name)
    w = weights(rng)
    plain = encode_tensor(w, fmt)[1]
    assert torch.equal(scaled_values(w, torch.ones(192), fmt), plain)
    assert torch.equal(awq_values(w, no_inputs(192), fmt), plain)
    seen = inputs(rng)
    assert output_error(w, awq_values(w, seen, fmt), seen.hessian) <= output_error(w, plain, seen.hessian)


@pytest.mark.parametrize("name", ["int4-g64-ct", "int4-g64-ct-asym"])
def test_awq_finds_what_the_theory_finds(name: str) -> None:
    rng, fmt = np.random.default_rng(4), format_named(name)
    w, x = (
        weights(rng),
        rng.integers(-40, 41, (512, 192)) * 2.0 ** rng.integers(-3, 4, 192),
    )  # means are exact in float32
    seen = no_inputs(192)
    seen.add(torch.from_numpy(x))
    rule = replace(AWQ_RULES["llmcompressor"], group_size=64, symmetric=not name.endswith("asym"))
    theirs = search_scales(w.numpy(), x.astype(np.float32), rule)
    assert not np.array_equal(theirs.scales, np.ones(192))
    assert np.array_equal(awq_values(w, seen, fmt).numpy(), theirs.values)


def test_layers_are_given_what_their_quantized_predecessors_compute(model: PreTrainedModel) -> None:
    """The second moment that each layer is given is that of the final model, up to what comes later in its own layer."""
    state = state_of(model)
    names = linear_names(model)
    seen: dict[str, Inputs] = {}

    def keep(name: str, w: Tensor, found: Inputs) -> Tensor:
        seen[name] = found
        return encode_tensor(w, format_named("int2-g64"))[1]

    order = list(replace_in_order(model, names, DOCUMENTS, batch=2, replace=keep))
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [name.split(".")[-2] for name in order] == kinds * 2
    assert [name.split(".")[2] for name in order] == ["0"] * 7 + ["1"] * 7
    expected = {name: no_inputs(found.products.shape[0]) for name, found in seen.items()}
    modules = {f"{n}.weight": m for n, m in model.named_modules() if f"{n}.weight" in names}
    handles = [m.register_forward_pre_hook(lambda _, a, n=n: expected[n].add(a[0])) for n, m in modules.items()]
    for document in DOCUMENTS:
        if document:
            model(input_ids=torch.tensor([document]))
    for handle in handles:
        handle.remove()
    tokens = sum(map(len, DOCUMENTS))
    for name in names:
        assert seen[name].tokens == expected[name].tokens == tokens
        rtol = 4 * float(np.sqrt(np.finfo(np.float32).eps))
        got, wanted = (found[name].products.numpy() for found in (seen, expected))
        np.testing.assert_allclose(got, wanted, rtol, rtol * float(np.abs(wanted).max()))
    Shell(model, None).with_state(state)


@pytest.mark.parametrize("name", ["gptq:int4-g64", "gptq-forget:nf4-b64", "awq-retain:int4-g64-asym"])
def test_a_state_is_quantized_by_the_text_that_the_format_names(model: PreTrainedModel, name: str) -> None:
    state = state_of(model)
    other = [[1, 200, 201, 202], [1, 250]]
    texts = {"generic": DOCUMENTS, "retain": DOCUMENTS[:2], "forget": other}
    shell = Shell(model, None, texts)
    found = shell.quantized(state, name)
    text = text_of(name)
    assert text is not None
    own = quantize_state(state, shell.names, name, Calibration(model, texts[text]))
    swapped = Shell(model, None, texts | {text: [[1, 77, 78, 79, 80, 81]]}).quantized(state, name)
    plain = quantize_state(state, shell.names, name.partition(":")[2])
    assert all(torch.equal(found[key], own[key]) for key in state)
    assert any(not torch.equal(found[key], swapped[key]) for key in shell.names)
    assert any(not torch.equal(found[key], plain[key]) for key in shell.names)
    assert all(found[key] is state[key] for key in set(state) - set(shell.names))


def test_without_its_text_a_format_is_refused(model: PreTrainedModel) -> None:
    state = state_of(model)
    with pytest.raises(ValueError, match="gptq-forget:int4-g64 is calibrated on forget text, got texts: retain"):
        Shell(model, None, {"retain": DOCUMENTS}).quantized(state, "gptq-forget:int4-g64")
    with pytest.raises(ValueError, match="calibration must be given"):
        quantize_state(state, linear_names(model), "awq:int4-g64")
    with pytest.raises(ValueError, match="documents must hold a token"):
        quantize_state(state, linear_names(model), "awq:int4-g64", Calibration(model, [[]]))
    with pytest.raises(ValueError, match="round to nearest"):
        quantize_state(state, linear_names(model), "gptq:int4-g64-dither", Calibration(model, DOCUMENTS))
    with pytest.raises(ValueError, match="one list of decoder layers, got embed"):
        replace_in_order(model, ["embed.weight"], DOCUMENTS, batch=1, replace=lambda name, w, found: w)
    with pytest.raises(ValueError, match="whole blocks of 48"):
        awq_values(torch.ones(2, 64), no_inputs(64), format_named("int4-g48"))

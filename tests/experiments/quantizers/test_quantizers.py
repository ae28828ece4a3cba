"""The torch path reads the same descriptions as the numpy reference, and gives the same bits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")

from unforgotten.experiments.models.shell import linear_names
from unforgotten.experiments.quantizers.registry import quantize_state
from unforgotten.experiments.quantizers.torch_path import encode_tensor
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip

FORMATS = [
    *(
        f"int{bits}-{block}{rule}"
        for bits in (2, 3, 4, 5, 6, 7, 8)
        for block in ("g64", "row")
        for rule in ("", "-asym", "-paper")
    ),
    "int4-g64-dither",
    "int8-row-dither7",
    "int4-tensor",
    "int4-tensor-asym",
    "int4-tensor-paper",
    "int4-g48",
    "nf4-b64",
    "nf4-b128",
    "nf4-b60",
    "fp4-b64",
    "fp4-b60",
    "llmint8-row",
    *(
        f"int{bits}-{block}{rule}"
        for bits in (2, 3, 4, 8)
        for block in ("g64", "row")
        for rule in ("-ct", "-ct-asym", "-ao", "-ao-asym")
    ),
    "hqq2-g64",
    "hqq4-g64",
    "hqq8-g64",
    "hqq4-g64-opt",
    "fp8-row",
    "fp8-tensor",
    "fp8-g64",
    "fp8-b128x128",
    "fp8-b7x64",
    "fp8-cast",
    "mxfp4-b32",
    "mxfp4-b32-ct",
    "nvfp4",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
]


def weights(kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(11)
    w = rng.normal(0, 0.02, (24, 192)).astype(np.float32)
    match kind:
        case "outliers":
            w[:, ::37] *= 40
        case "ties":
            w = (rng.integers(-14, 15, (24, 192)) * 0.5).astype(np.float32)
            w[:, ::64] = 7.0
        case "zeros and subnormals":
            w[:8] = 0
            w[8:12] *= np.float32(1e-41) / np.float32(0.02)
            w[12:16, :] = 0
            w[12:16, 5] = np.float32(1e-45)
            w[16:] = rng.integers(-3, 4, (8, 192)) * np.float32(1e-45)
        case "one sign":
            w = np.abs(w) + np.float32(0.01)
        case "tied zero points":
            # 0 lies k + 1/2 steps above the lowest of 2^bits levels, in every group of 64
            w[:] = 0
            for row, (bits, k) in enumerate(product(range(2, 9), (0, 1))):
                w[row, ::64], w[row, 1::64] = -(k + 0.5), 2**bits - 1.5 - k
    return w


@pytest.mark.parametrize("kind", ["normal", "outliers", "ties", "zeros and subnormals", "one sign", "tied zero points"])
@pytest.mark.parametrize("name", FORMATS)
def test_torch_path_equals_the_numpy_reference(name: str, kind: str) -> None:
    fmt, w = format_named(name), weights(kind)
    codes, values = encode_tensor(torch.from_numpy(w), fmt)
    assert np.array_equal(codes.numpy(), quantize(w, fmt)[0])
    assert np.array_equal(values.numpy(), round_trip(w, fmt))


@pytest.mark.parametrize("name", ["q3_k", "q4_k", "q6_k"])
def test_torch_path_equals_the_reference_on_searched_scales(name: str) -> None:
    fmt, w = format_named(name), weights("outliers").reshape(-1, 256)
    codes, values = encode_tensor(torch.from_numpy(w), fmt)
    assert np.array_equal(codes.numpy(), quantize(w, fmt)[0])
    assert np.array_equal(values.numpy(), round_trip(w, fmt))


@pytest.mark.parametrize("name", ["q4_0", "q4_1"])
def test_a_scale_beyond_float16_is_refused(name: str) -> None:
    w = torch.full((1, 32), 1e30)
    w[0, 0] = 0
    with pytest.raises(ValueError, match="finite float16"):
        encode_tensor(w, format_named(name))


def test_part_of_a_block_is_refused_where_the_library_refuses_it() -> None:
    with pytest.raises(ValueError, match="whole blocks of 32"):
        encode_tensor(torch.ones(2, 48), format_named("q8_0"))


@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "llmint8-row"])
def test_bitsandbytes_back_end_gives_our_values(name: str) -> None:
    pytest.importorskip("bitsandbytes", reason="needs unforgotten[quantizers]")
    state = {"layer.weight": torch.from_numpy(weights("outliers"))}
    rng = np.random.default_rng(5)
    state["large.weight"] = torch.from_numpy(rng.normal(size=(8192, 64)).astype(np.float32))
    ours, theirs = (quantize_state(state, list(state), p + name) for p in ("", "bnb:"))
    for layer in state:
        assert torch.equal(ours[layer], theirs[layer])


def test_only_the_named_weights_are_quantized() -> None:
    state = {k: torch.from_numpy(weights("normal")) for k in ("a.weight", "b.weight")}
    result = quantize_state(state, ["a.weight"], "int2-row")
    assert not torch.equal(result["a.weight"], state["a.weight"])
    assert result["b.weight"] is state["b.weight"]


def test_every_linear_layer_but_the_head_is_quantized() -> None:
    from unforgotten.experiments.config import BaseConfig
    from unforgotten.experiments.models.bases.llama import TINY

    names = linear_names(TINY.model(BaseConfig(layers=2), 0))
    assert len(names) == 2 * 7
    assert not any("head" in name or "embed" in name or "norm" in name for name in names)


@pytest.mark.parametrize(
    ("name", "words"),
    [("bnb:int4-g64", "nf4-bN"), ("nobody:int4-g64", "back end"), ("int9-row", "format must be one of")],
)
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dict(quantize_state({"w": torch.ones(4, 64)}, ["w"], name))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        encode_tensor(torch.tensor([[1.0, float("nan")]]), format_named("int4-row"))


def test_every_tensor_of_a_state_has_a_dither_of_its_own() -> None:
    """Two tensors of the same weights round apart; a tensor before and after an update rounds by one dither."""
    w = torch.from_numpy(weights("normal"))
    state = {"a.weight": w, "b.weight": w, "norm.weight": w}
    found = quantize_state(state, ["a.weight", "b.weight"], "int4-g64-dither")
    assert torch.equal(found["norm.weight"], w)
    assert not torch.equal(found["a.weight"], found["b.weight"])
    assert torch.equal(found["a.weight"], quantize_state(state, ["a.weight"], "int4-g64-dither")["a.weight"])
    other = quantize_state(state, ["a.weight"], "int4-g64-dither1")
    assert not torch.equal(found["a.weight"], other["a.weight"])
    plain = quantize_state(state, ["a.weight", "b.weight"], "int4-g64")
    assert torch.equal(plain["a.weight"], plain["b.weight"])

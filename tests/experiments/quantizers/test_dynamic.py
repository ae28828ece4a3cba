"""Dynamic quantization: one layer against integers by hand, and a model whose layers compute so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")

from torch import Tensor, nn
from transformers import PreTrainedModel

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.quantizers.dynamic import integer_layer, row_format, row_formats
from unforgotten.experiments.quantizers.registry import quantize_state

IDS = [[1, 5, 9, 12, 7, 44, 3, 2]]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def by_hand(
    x: NDArray[np.float32], w: NDArray[np.float32], bias: NDArray[np.float32], largest: int = 127
) -> NDArray[np.float32]:
    """Integers by absmax / 127, halves to even; int64 sums; float32 once, then each scale, then the bias.

    The largest code of the weights may be another than that of the inputs.
    """

    def integers(a: NDArray[np.float32], most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scale = np.abs(a).max(axis=1, keepdims=True) / np.float32(most)
        ratio = np.divide(a, scale, out=np.zeros_like(a), where=scale != 0)
        return np.clip(np.rint(ratio), -most, most).astype(np.int64), scale

    (xq, xs), (wq, ws) = integers(x, 127), integers(w, largest)
    return (xq @ wq.T).astype(np.float32) * xs * ws.T + bias


@pytest.mark.parametrize("columns", [64, 1024, 1025, 3000])
def test_a_layer_is_that_of_integers_bit_for_bit(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x, w = (rng.normal(size=(n, columns)).astype(np.float32) for n in (7, 5))
    x[2], w[3] = 0, 0
    x[3], w[1] = 1, 1  # every product is 127 squared: the largest sum
    bias = rng.normal(size=5).astype(np.float32)
    tensors = (torch.from_numpy(a) for a in (x.reshape(1, 7, columns), bias))
    found = integer_layer(torch.from_numpy(w), "int8-row")(*tensors)
    assert np.array_equal(found.numpy(), by_hand(x, w, bias)[None])
    tensors = (torch.from_numpy(a) for a in (x.reshape(1, 7, columns), bias))
    of_four = integer_layer(torch.from_numpy(w), *row_formats("int4-row-a8"))(*tensors)
    assert np.array_equal(of_four.numpy(), by_hand(x, w, bias, largest=7)[None])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=2, heads=2), 0).eval()


def test_a_shell_takes_the_layers_of_a_state_and_forgets_them(model: PreTrainedModel) -> None:
    state, shell = state_of(model), Shell(model, None, {"generic": IDS})
    ids = torch.tensor(IDS)
    plain = model(ids).logits.clone()
    dynamic = shell.quantized(state, "dynamic:int8-row")
    weights_alone = shell.quantized(state, "int8-row")
    assert all(torch.equal(dynamic[name], weights_alone[name]) for name in state)
    calibrated = shell.quantized(state, "gptq:int4-g64")
    found, of_weights = (shell.with_state(s)(ids).logits.clone() for s in (dynamic, weights_alone))
    assert not torch.equal(found, of_weights)
    finer = shell.quantized(state, "dynamic:int4-row-a8")
    four = shell.quantized(state, "int4-row")
    assert all(torch.equal(finer[name], four[name]) for name in state)
    assert not torch.equal(shell.with_state(finer)(ids).logits, shell.with_state(four)(ids).logits)
    assert torch.equal(shell.with_state(dynamic)(ids).logits, found)
    mixed = dynamic.with_weights(state) if isinstance(dynamic, RuntimeState) else state
    of_inputs = shell.with_state(mixed)(ids).logits.clone()
    assert not torch.equal(of_inputs, plain)
    again = shell.quantized(state, "gptq:int4-g64")  # a calibration sees no layer of the state before
    assert all(torch.equal(again[name], calibrated[name]) for name in state)
    shell.with_state(dynamic)
    assert torch.equal(shell.with_state(dynamic)(ids).logits, found)
    assert torch.equal(shell.with_state(state)(ids).logits, plain)


def test_a_models_layers_compute_with_integers(model: PreTrainedModel) -> None:
    state, shell = state_of(model), Shell(model, None)
    seen: list[tuple[Tensor, Tensor]] = []
    shell.with_state(shell.quantized(state, "dynamic:int8-row"))
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)

    def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = layer.register_forward_hook(watch)
    model(torch.tensor(IDS))
    handle.remove()
    shell.with_state(state)
    (x, y), w = seen[0], state[f"{name}.weight"].numpy()
    assert np.array_equal(y[0].numpy(), by_hand(x[0].numpy(), w, np.zeros(len(w), np.float32)))


@pytest.mark.parametrize("name", ["int8-row-asym", "int8-g64", "nf4-b64", "int9-row"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="int2-row to int8-row"):
        row_format(name)
    with pytest.raises(ValueError, match="int2-row to int8-row"):
        quantize_state({"w": torch.ones(4, 64)}, ["w"], f"dynamic:{name}")

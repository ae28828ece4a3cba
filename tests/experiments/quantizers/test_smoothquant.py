"""SmoothQuant: its factors by hand, which layers share them, and layers that compute with integers of x / s and w s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="the torch path needs unforgotten[experiments]")

from torch import Tensor, nn
from transformers import PreTrainedModel

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.shell import Shell, linear_names, state_of
from unforgotten.experiments.quantizers.dynamic import integer_layer
from unforgotten.experiments.quantizers.own import own_values
from unforgotten.experiments.quantizers.quantizer import Calibration
from unforgotten.experiments.quantizers.registry import ours_of, quantize_state
from unforgotten.experiments.quantizers.smoothquant import LEAST, after_norms, smoothing_factors

IDS = [[1, 5, 9, 12, 7, 44, 3, 2], [1, 30, 31], [], [1, 7, 8]]
NAME = "smoothquant-retain:int8-row"


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A model one column of whose normed inputs is large, and the weights on it small, as in language models."""
    made = TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=2, heads=2), 0).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("layernorm.weight"):
                weight[3] *= 100
            elif name.rsplit(".", 2)[1] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                weight[:, 3] /= 100
    return made


def inputs(model: PreTrainedModel, layer: str) -> Tensor:
    """What a layer is given for all texts, (tokens, columns)."""
    seen: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, x: seen.append(x[0].reshape(-1, x[0].shape[-1]).clone()))
    for ids in filter(None, IDS):
        model(torch.tensor([ids]))
    handle.remove()
    return torch.cat(seen)


def test_factors_are_those_of_the_formula() -> None:
    w = [torch.tensor([[1.0, -4.0, 0.0], [0.25, 2.0, 0.0]]), torch.tensor([[-1.0, 16.0, 0.0]])]
    found = smoothing_factors(torch.tensor([9.0, 4.0, 4.0]), w)
    assert torch.equal(found[:2], torch.tensor([3.0, 0.5]))
    assert found[2] == torch.tensor(2.0) / torch.tensor(LEAST) ** 0.5
    assert torch.equal(smoothing_factors(torch.tensor([9.0, 4.0, 4.0]), w, 1.0), torch.tensor([9.0, 4.0, 4.0]))
    assert smoothing_factors(torch.tensor([0.0]), [torch.tensor([[1e30]])]) == LEAST


def test_layers_that_a_norm_feeds_share_its_factors_and_no_others_have_any(model: PreTrainedModel) -> None:
    found = after_norms(model, linear_names(model), Calibration(model, IDS, batch=1))
    parts = {part: [f"model.layers.{i}.{part}.weight" for i in (0, 1)] for part in ("self_attn.q_proj", "mlp.up_proj")}
    groups = [{name.rsplit(".", 2)[1] for name in names} for names, _ in found]
    assert groups == [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}] * 2
    for part, names in parts.items():
        for name in names:
            largest = next(largest for group, largest in found if name in group)
            seen = inputs(model, name.removesuffix(".weight")).abs().amax(0)
            assert torch.equal(largest, seen), part


def test_layers_compute_with_integers_of_what_is_smoothed(model: PreTrainedModel) -> None:
    state = state_of(model)
    names = linear_names(model)
    found = quantize_state(state, names, NAME, Calibration(model, IDS))
    assert isinstance(found, RuntimeState)
    groups = after_norms(model, names, Calibration(model, IDS))
    group, largest = next((g, m) for g, m in groups if "model.layers.0.self_attn.q_proj.weight" in g)
    s = smoothing_factors(largest, [state[name] for name in group])
    assert s[3] > 10 * s.median()
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    for name in names:
        factors = s if name in group else None
        if factors is None and not name.endswith(("o_proj.weight", "down_proj.weight")):
            continue
        scale = torch.ones(64) if factors is None else factors
        layer = found.layer(name)
        assert layer is not None
        assert torch.equal(layer(x, None), integer_layer(state[name] * scale, "int8-row")(x / scale, None))
        assert torch.equal(found[name], own_values(state[name] * scale, "int8-row") / scale)
    assert all(found[key] is state[key] for key in set(state) - set(names))
    assert ours_of(NAME) is None


def test_smoothing_helps_where_a_column_is_large(model: PreTrainedModel) -> None:
    state, shell = state_of(model), Shell(model, None, {"retain": IDS})
    ids = torch.tensor([IDS[0]])
    plain = shell.with_state(state)(ids).logits.clone()
    errors = {}
    for name in (NAME, "dynamic:int8-row"):
        quantized = shell.quantized(state, name)
        errors[name] = (shell.with_state(quantized)(ids).logits - plain).norm()
        assert isinstance(quantized, RuntimeState)
        mixed = shell.with_state(quantized.with_weights(state))(ids).logits
        assert 0 < (mixed - plain).norm() < 2 * errors[name]
    shell.with_state(state)
    assert errors[NAME] < errors["dynamic:int8-row"] / 2


def test_what_is_missing_is_said(model: PreTrainedModel) -> None:
    state, names = state_of(model), linear_names(model)
    with pytest.raises(ValueError, match="int2-row to int8-row for smoothquant:, got 'int8-g64'"):
        quantize_state(state, names, "smoothquant:int8-g64", Calibration(model, IDS))
    with pytest.raises(ValueError, match="documents must hold a token"):
        quantize_state(state, names, "smoothquant:int8-row", Calibration(model, [[]]))
    assert isinstance(model.get_submodule("model.layers.0.mlp.up_proj"), nn.Linear)

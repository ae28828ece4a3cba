"""AWQ by llm-compressor on the CPU, by its own `oneshot`: `llmcompressor-awq:int4-g128-ct`, `llmcompressor-awq-forget:int4-g128-ct-asym`.

The library scales what enters a group of layers down by s, in the norm or layer before it, and the columns of the group up;
of its candidates s is the one of least squared error of the block's output, after a layer has seen its quantized predecessors.
A layer has s of its own inputs in its columns, and where it stands before another, as values do before the output of
attention, that layer's s in its rows. Q(W s_in / s_out) s_out / s_in is what such a layer computes with on the inputs of the
unscaled model, so that is what takes the place of W here; norms stay as they are.

`llmcompressor-awq:` is calibrated on generic text, `-retain:` and `-forget:` on what unlearning sees of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from unforgotten.experiments.quantizers.calibrated import one_of_each_text
from unforgotten.experiments.quantizers.compressed_tensors import arguments_of
from unforgotten.experiments.quantizers.llmcompressor import REQUIREMENT, grouped
from unforgotten.experiments.quantizers.quantizer import Calibration, State
from unforgotten.theory.formats.names import Format, format_named

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Scaling(NamedTuple):
    """What AWQ did to the layers that are given the same tensor.

    Attributes:
        before: name of the norm or linear layer whose outputs were divided by the factors.
        layers: names of the layers whose columns were multiplied by them.
        factors: factors s > 0, float64 (columns,).
    """

    before: str
    layers: tuple[str, ...]
    factors: Tensor


def scaled_model(model: PreTrainedModel, names: Sequence[str], fmt: Format, calibration: Calibration) -> list[Scaling]:
    """Let the library scale a model in place, and fit grids to the scaled weights; return what it scaled.

    Args:
        model: model with the weights to quantize.
        names: names of the weights.
        fmt: integers of compressed-tensors by group.
        calibration: text.

    Raises:
        ValueError: there is no text, or a row is no multiple of the group.
    """
    oneshot = import_module("llmcompressor").oneshot
    QuantizationModifier = import_module("llmcompressor.modifiers.quantization").QuantizationModifier
    IntermediatesCache = import_module("llmcompressor.pipelines.cache").IntermediatesCache
    patch_attr = import_module("compressed_tensors.utils").patch_attr

    modifier, found = _recording()
    layers = [name.removesuffix(".weight") for name in names]
    scheme = {"targets": layers, "weights": arguments_of(fmt)}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())  # the library reads the model's configuration again
        model.config.save_pretrained(folder)
        stack.enter_context(patch_attr(model.config, "_name_or_path", folder))
        stack.enter_context(patch_attr(IntermediatesCache, "pin_memory", _without_accelerator))
        oneshot(
            model=model,
            dataset=_batches(calibration),
            processor=object(),  # none is asked for text that is tokenized already
            recipe=[modifier, QuantizationModifier(config_groups={"all": scheme})],
            pipeline="sequential",
        )
    return found


def _without_accelerator(cache: Any, batch: int) -> None:
    """Pin no memory, which raises where there is no accelerator."""


def _batches(calibration: Calibration) -> Any:
    from torch.utils.data import DataLoader

    from unforgotten.experiments.models.layer_inputs import equal_lengths

    batches: Any = [{"input_ids": ids} for ids in equal_lengths(calibration.documents, calibration.batch)]
    if not batches:
        raise ValueError("documents must hold a token to calibrate on, got none")
    return DataLoader(batches, batch_size=None)


def _recording() -> tuple[Any, list[Scaling]]:
    """Return the library's AWQ, and the list that it will put its scalings into."""
    found: list[Scaling] = []
    AWQModifier: Any = import_module("llmcompressor.modifiers.transform.awq").AWQModifier

    class Recording(AWQModifier):  # type: ignore[misc]
        def _compute_best_scale(self, mapping: Any, *arguments: Any) -> Tensor:
            factors: Tensor = super()._compute_best_scale(mapping, *arguments)
            found.append(Scaling(mapping.smooth_name, tuple(mapping.balance_names), factors))
            return factors

    return Recording(), found


def values_of(model: PreTrainedModel, names: Sequence[str], scalings: Sequence[Scaling]) -> Mapping[str, Tensor]:
    """Return by name what takes the place of each weight in the model that was not scaled, float32.

    Args:
        model: model that `scaled_model` has scaled.
        names: names of the weights.
        scalings: what it returned.
    """
    forward_quantize = import_module("compressed_tensors.quantization.lifecycle.forward").forward_quantize

    columns = {layer: scaling.factors for scaling in scalings for layer in scaling.layers}
    rows = {scaling.before: scaling.factors for scaling in scalings}
    found = {}
    for name in names:
        layer = name.removesuffix(".weight")
        module: Any = model.get_submodule(layer)
        values = forward_quantize(module, module.weight.detach(), "weight", module.quantization_scheme.weights).float()
        if layer in rows:  # the last rows, where queries, keys and values are one layer
            values[-len(rows[layer]) :] *= rows[layer][:, None]
        found[name] = (values / columns[layer]).float() if layer in columns else values
    return found


def awq_state(state: State, names: Sequence[str], format_name: str, calibration: Calibration) -> State:
    """Return the state with what AWQ computes with in place of the named weights; a copy of the model is scaled for it.

    Raises:
        ValueError: a row is no multiple of the group, or there is no text.
    """
    from copy import deepcopy

    import torch

    from unforgotten.experiments.models.states import LazyState, fill

    fmt = format_named(format_name)
    for name in names:
        if state[name].shape[-1] % (fmt.block_size or 1):
            rule = f"llmcompressor-awq:{format_name} takes rows of whole groups of {fmt.block_size}"
            raise ValueError(f"{rule}, got columns={state[name].shape[-1]} in {name}")
    model = fill(deepcopy(calibration.model).cpu().float(), {k: v.cpu() for k, v in state.items()})
    with torch.no_grad():
        values = values_of(model, names, scaled_model(model, names, fmt, calibration))
    return LazyState(state, lambda key: values[key].to(state[key]) if key in values else state[key])


QUANTIZERS = one_of_each_text(
    "llmcompressor-awq",
    awq_state,
    {"int{2..8}-gN-ct[-asym]": "AWQ on integers of compressed-tensors"},
    takes=grouped,
    packages=(REQUIREMENT,),
)

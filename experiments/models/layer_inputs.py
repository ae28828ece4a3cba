"""A model's linear layers in the order in which they compute, each with the second moment of its inputs on a text.

Decoder layers are taken one after the other. Within one, linear layers that are given the same tensor (queries, keys and
values) are visited together, then replaced; what comes later is given what the replaced ones compute, as GPTQ asks
(arXiv 2210.17323). Only one decoder layer runs at a time, on hidden states that are kept; second moments are dropped as soon
as their layers are done.

    replaced = replace_in_order(model, names, documents, batch=8, replace=lambda name, w, inputs: w)

Documents run in batches of equal length, so that no batch is padded and no padding is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unforgotten.experiments.models.batches import Documents


@dataclass
class Inputs:
    """Sums over the inputs of a linear layer, float64.

    Attributes:
        products: sum of x x' over tokens, (columns, columns).
        magnitudes: sum of |x| over tokens, (columns,).
        tokens: number of tokens; 0 for a layer that no token reached.
    """

    products: Tensor
    magnitudes: Tensor
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Add inputs, (..., columns)."""
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        self.products += rows.T @ rows
        self.magnitudes += rows.abs().sum(0)
        self.tokens += len(rows)

    @property
    def hessian(self) -> Tensor:
        """H = 2/n X'X, float64 (columns, columns), the second derivative of the mean squared output error; 0 without tokens."""
        return self.products * (2.0 / max(self.tokens, 1))

    @property
    def means(self) -> Tensor:
        """Mean |x| of each column, float64 (columns,); 0 without tokens."""
        return self.magnitudes / max(self.tokens, 1)


def no_inputs(columns: int, device: torch.device | None = None) -> Inputs:
    """Return sums over no tokens, on a device that has float64; None for the CPU."""
    products, magnitudes = (torch.zeros(n, dtype=torch.float64, device=device) for n in (columns**2, columns))
    return Inputs(products.reshape(columns, columns), magnitudes)


Replace = Callable[[str, Tensor, Inputs], Tensor]
"""From the name of a weight, the weight and its inputs, what takes its place."""


class Call(NamedTuple):
    """How a model calls a decoder layer on one batch, but for the hidden states."""

    rest: tuple[Any, ...]
    named: dict[str, Any]


@torch.no_grad()
def replace_in_order(
    model: nn.Module, names: Sequence[str], documents: Documents, *, batch: int, replace: Replace
) -> dict[str, Tensor]:
    """Replace weights of linear layers in place, in the order of computation, and return the new ones by name.

    Args:
        model: model in the form of Transformers: a list of decoder layers, each mapping hidden states to hidden states.
        names: names of the weights.
        documents: token ids of the text.
        batch: documents of equal length that run together.
        replace: function that makes the new weight; called with no inputs for a layer that no token reached.

    Raises:
        ValueError: there is no text, or a weight stands in no decoder layer.
    """
    if not any(len(document) for document in documents):
        raise ValueError("documents must hold a token to calibrate on, got none")
    layers = decoder_layers(model, names)
    hidden, calls = _entered(model, layers, documents, batch)
    prefixes = {module: name for name, module in model.named_modules()}
    replaced: dict[str, Tensor] = {}
    for layer, of_layer in zip(layers, zip(*calls, strict=True), strict=True):
        linear = {
            module: f"{prefixes[module]}.weight"
            for module in layer.modules()
            if isinstance(module, nn.Linear) and f"{prefixes[module]}.weight" in set(names)
        }
        for group in _groups(layer, list(linear), hidden[0], of_layer[0]):
            inputs = _inputs_of(layer, group[0], hidden, of_layer)
            for module in group:
                name = linear[module]
                weight = module.weight.detach().clone()
                replaced[name] = replace(name, weight.to(inputs.products.device), inputs).to(weight.device)
                module.weight.copy_(replaced[name])
        hidden = [_run(layer, h, call) for h, call in zip(hidden, of_layer, strict=True)]
    return replaced


def decoder_layers(model: nn.Module, names: Iterable[str]) -> nn.ModuleList:
    """Return the list of modules that holds all the named weights.

    Raises:
        ValueError: no list does.
    """
    lists = [(f"{name}.", module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    wanted = list(names)
    for prefix, module in lists:
        if wanted and all(name.startswith(prefix) for name in wanted):
            return module
    outside = next((n for n in wanted if not any(n.startswith(prefix) for prefix, _ in lists)), "the weights")
    raise ValueError(f"weights must stand in one list of decoder layers, got {outside} outside of it")


def equal_lengths(documents: Documents, batch: int) -> Iterator[Tensor]:
    """Yield token ids (documents, length), shortest first, each document once; empty ones are left out."""
    for length, some in groupby(sorted(documents, key=len), key=len):
        rows = list(some) if length else []
        for start in range(0, len(rows), batch):
            yield torch.tensor(rows[start : start + batch], dtype=torch.long)


def _entered(
    model: nn.Module, layers: nn.ModuleList, documents: Documents, batch: int
) -> tuple[list[Tensor], list[list[Call]]]:
    """Return for each batch what enters the first decoder layer, and how each layer is called."""
    device = next(model.parameters()).device
    hidden: list[Tensor] = []
    calls: list[list[Call]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given, rest = (arguments[0], arguments[1:]) if arguments else (named["hidden_states"], ())
        if module is layers[0]:
            hidden.append(given.detach())
        calls[-1].append(Call(rest, {k: v for k, v in named.items() if k != "hidden_states"}))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        for ids in equal_lengths(documents, batch):
            calls.append([])
            model(input_ids=ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, calls


def _run(layer: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    output = layer(hidden, *call.rest, **call.named)
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@contextmanager
def _watching(modules: Iterable[nn.Module], watch: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        watch(module, arguments[0])

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _groups(layer: nn.Module, linear: Sequence[nn.Linear], hidden: Tensor, call: Call) -> list[list[nn.Linear]]:
    """Return the linear layers in the order of their first calls, those given the same tensor together, unused ones last."""
    seen: list[tuple[nn.Module, Tensor]] = []  # holds the tensors, so that no two share a place in memory
    with _watching(linear, lambda module, x: seen.append((module, x))):
        _run(layer, hidden, call)
    first: Mapping[nn.Module, Tensor] = dict(reversed(seen))
    groups: list[tuple[Tensor | None, list[nn.Linear]]] = []
    for module in sorted(linear, key=lambda m: next((i for i, (n, _) in enumerate(seen) if n is m), len(seen))):
        x = first.get(module)
        if groups and x is not None and groups[-1][0] is x:
            groups[-1][1].append(module)
        else:
            groups.append((x, [module]))
    return [group for _, group in groups]


def _inputs_of(layer: nn.Module, linear: nn.Linear, hidden: Sequence[Tensor], calls: Sequence[Call]) -> Inputs:
    device = linear.weight.device
    inputs = no_inputs(linear.in_features, None if device.type == "mps" else device)  # which has no float64
    with _watching([linear], lambda _, x: inputs.add(x.to(inputs.products.device))):
        for h, call in zip(hidden, calls, strict=True):
            _run(layer, h, call)
    return inputs

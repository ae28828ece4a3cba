"""States of models whose linear layers quantize what they are given while they run.

A `RuntimeState` has weights as any state, and says for each of its linear layers how it computes. A shell installs that as
forward hooks when it takes the state, and removes them when it takes another:

    with_layers(model, RuntimeState(weights, weights.__getitem__, layer_of_name, layer_of_both))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State


class Layer(Protocol):
    """How a linear layer computes."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the outputs (..., rows) of inputs (..., columns)."""
        ...


class RuntimeState(LazyState):
    """A state some of whose linear layers compute as they say, not as a product with their weight.

    Args:
        names: names of all weights.
        weight: function that makes the weight of a name.
        layers: functions that make the layer of each weight that is quantized, by its name.
        mixed: function that makes a layer of a name and a weight that is on no grid: as `layers`, but for the weight.
    """

    def __init__(
        self,
        names: Iterable[str],
        weight: Callable[[str], Tensor],
        layers: Callable[[str], Layer | None],
        mixed: Callable[[str, Tensor], Layer],
    ) -> None:
        super().__init__(names, weight)
        self.layer, self._mixed = layers, mixed

    def with_weights(self, state: State) -> RuntimeState:
        """Return another state's weights, whose layers quantize their inputs as those of this state do."""

        def layer(name: str) -> Layer | None:
            return None if self.layer(name) is None else self._mixed(name, state[name])

        return RuntimeState(state, lambda name: state[name], layer, self._mixed)


def with_layers(model: nn.Module, state: State) -> None:
    """Let a model's linear layers compute as a state says: plainly, but for those of a `RuntimeState`."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Computing):
                del module._forward_hooks[key]
        layer = state.layer(f"{name}.weight") if isinstance(state, RuntimeState) else None
        if layer is not None:
            module.register_forward_hook(_Computing(layer))


class _Computing:
    """A forward hook that puts what a layer computes in place of the output."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the output of the layer."""
        bias = module.bias
        return self._layer(inputs[0], bias if isinstance(bias, Tensor) else None).to(output.dtype)

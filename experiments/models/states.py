"""Weights that are not held: each is read, or made of others, when it is asked for.

Four states of a model, and those made of them, then cost the memory of one tensor each. The model that takes them in turn
is the only whole copy:

    target, unlearned = (stored_state(folder, model) for folder in pair)
    fill(model, LazyState(target, lambda name: (target[name] + unlearned[name]) / 2))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import read_float32, tensors_equal
from unforgotten.experiments.quantizers.quantizer import State

SHORT = (torch.float16, torch.bfloat16)


class LazyState(Mapping[str, Tensor]):
    """A state whose weights are made when they are asked for, and not kept.

    Args:
        names: names of the weights.
        weight: function that makes the weight of a name.
    """

    def __init__(self, names: Iterable[str], weight: Callable[[str], Tensor]) -> None:
        self._names, self._weight = tuple(names), weight

    def __getitem__(self, name: str) -> Tensor:
        """Make a weight."""
        return self._weight(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the names in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the names."""
        return len(self._names)


def stored_state(folder: Path, model: PreTrainedModel) -> State | None:
    """Return the weights of a checkpoint by the names of a model, float32, read from the files when they are asked for.

    They come on the device of the model.

    Weights that the model ties are read once, under the first of their names.

    Args:
        folder: directory of safetensors.
        model: model that loads them, of any weights.

    Returns:
        The state; None where the files are no safetensors, or hold other names, shapes or ties than the model's, which a
        loader may have renamed or joined.
    """
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError:
        return None
    own, stored = model.state_dict(), checkpoint.tensors
    first: dict[int, str] = {}
    source: dict[str, str] = {}
    for name, tensor in own.items():
        source[name] = first.setdefault(tensor.data_ptr(), name)
        info = stored.get(source[name])
        if info is None or info.shape != tuple(tensor.shape) or not tensor.is_floating_point():
            return None

    for name, tied in source.items():
        if name != tied and name in stored and not tensors_equal(checkpoint, name, checkpoint, tied):
            return None

    def weight(name: str) -> Tensor:
        return torch.from_numpy(read_float32(checkpoint, source[name])).to(own[name].device)

    return LazyState(own, weight)


def holds(model: PreTrainedModel, state: State) -> bool:
    """Tell whether a model's weights are those of a state rounded to the model's dtypes, bit for bit."""
    return all(torch.equal(tensor, state[name].to(tensor.dtype)) for name, tensor in model.state_dict().items())


@torch.no_grad()
def fill(model: PreTrainedModel, state: State) -> PreTrainedModel:
    """Put the weights of a state into a model, one after the other, and return the model.

    Each is rounded to nearest where the model's dtype is narrower, and goes to the device of the model's own.

    Raises:
        ValueError: their names differ, or a weight is too large for the model's dtype.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        raise ValueError(f"state must have the model's weights, got {min(own.keys() ^ state.keys())!r} in one alone")
    filled: set[int] = set()
    for name, tensor in own.items():
        if tensor.data_ptr() not in filled:
            values = state[name]
            tensor.copy_(values)
            if tensor.dtype in SHORT and not bool(tensor.isfinite().all()):
                most = float(values.abs().max())
                raise ValueError(f"dtype must hold every weight, got {str(tensor.dtype)[6:]} for {most:g} in {name}")
            filled.add(tensor.data_ptr())
    return model

"""A target and the model unlearned from it, loaded to be run: states that one shell takes in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from unforgotten.experiments.compute.device import place_named
from unforgotten.experiments.models.saved import check_loadable, first_line, load_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.models.states import LazyState, holds, stored_state
from unforgotten.experiments.quantizers.quantizer import State

UNCOMPUTED = frozenset(
    {"architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "attn_implementation"}
)
"""Settings of a configuration that change no logit."""


@dataclass(frozen=True)
class Pair:
    """Both states, float32, and the shell that runs them, in whose dtype they are rounded then."""

    shell: Shell
    target: State
    unlearned: State


def open_model_pair(target: Path, unlearned: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pair:
    """Load both from directories that transformers reads; the tokenizer is the target's, or the other's if it has none.

    Args:
        target: directory of the model before unlearning.
        unlearned: directory of the model after unlearning.
        device: device that the shell is on, as `place_named` takes it.
        dtype: dtype of the shell.

    Raises:
        ValueError: the device is not there, a directory is no model or has a pickle for weights, shapes or vocabularies differ, or there is no
            tokenizer; one line that begins with the path.
    """
    place = place_named(device)
    tokenizer = tokenizer_of(target, unlearned)
    if isinstance(place, torch.device):
        model = load_model(target, attention=None, dtype=dtype)
        model.to(place)  # type: ignore[arg-type]  # transformers types it otherwise
    else:
        model = load_model(target, attention=None, dtype=dtype, device_map=place)
    before = stored_state(target, model)
    if before is None or not holds(model, before):  # as transformers reads it, in float32 whatever the shell is in
        before = state_of(model) if dtype == torch.float32 else _loaded(target, model)
    return Pair(Shell(model, tokenizer), before, read_state(unlearned, model))


def tokenizer_of(target: Path, unlearned: Path) -> Any:
    """Return the target's tokenizer, or the other's if it has none.

    Raises:
        ValueError: there is none, or their vocabularies differ; one line.
    """
    known = [t for t in map(_tokenizer, (target, unlearned)) if t is not None]
    if not known:
        raise ValueError(f"{target}: must hold a tokenizer, as must {unlearned} or either")
    if len(known) == 2 and known[0].get_vocab() != known[1].get_vocab():
        raise ValueError(f"{unlearned}: must have the vocabulary of {target}, got another tokenizer")
    return known[0]


def read_state(folder: Path, model: PreTrainedModel) -> State:
    """Return the weights of a model's directory, which are to fit another model.

    They are read from its files when they are asked for, or loaded by transformers where the files name them otherwise.

    Raises:
        ValueError: transformers cannot load it, or a shape, a tie or a setting of its computation differs; one line that
            begins with the path.
    """
    _check_settings(folder, check_loadable(folder).to_dict(), model.config.to_dict())
    stored = stored_state(folder, model)
    if stored is not None:
        return stored
    loaded, own = _loaded(folder, model), model.state_dict()
    _check_shapes(folder, own, loaded)
    first: dict[int, str] = {}
    for name, tensor in own.items():
        tied = first.setdefault(tensor.data_ptr(), name)
        if not torch.equal(loaded[name], loaded[tied]):
            raise ValueError(f"{folder}: {name}: must equal {tied}, to which the target ties it, got other weights")
    return loaded


def _loaded(folder: Path, model: PreTrainedModel) -> State:
    """Return the weights as transformers loads them, float32, each on the device of the model's own when asked for."""
    loaded, own = load_model(folder, attention=None).state_dict(), model.state_dict()

    def weight(name: str) -> Tensor:
        return loaded[name].to(own[name].device) if name in own else loaded[name]

    return LazyState(loaded, weight)


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{folder}: must hold a tokenizer that transformers loads, got {first_line(error)}") from None


def _check_settings(folder: Path, own: dict[str, Any], target: dict[str, Any]) -> None:
    """Refuse a model that computes otherwise than the target, in whose shell its weights are run."""
    for name in sorted(own.keys() | target.keys()):
        says_nothing = name.startswith("_") or name in UNCOMPUTED or "dropout" in name
        if not says_nothing and own.get(name) != target.get(name):
            rule = f"{name} must be the target's, {target.get(name)!r}: both are run as one model"
            raise ValueError(f"{folder}/config.json: {rule}, got {own.get(name)!r}")


def _check_shapes(folder: Path, before: State, after: State) -> None:
    for name in sorted(before.keys() | after.keys()):
        shapes = [tuple(s[name].shape) if name in s else None for s in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{folder}: {name}: must have the target's shape, got {shapes[1]} for {shapes[0]}")

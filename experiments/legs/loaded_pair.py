"""A target and the model unlearned from it, loaded to be run: states that one shell takes in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from unforgotten.experiments.quantizers.registry import State, linear_names, quantize_state

logging.set_verbosity_error()
logging.disable_progress_bar()


@dataclass(frozen=True)
class Pair:
    """Both states, float32; `model` is a shell that takes the weights of the moment, `names` what quantizers touch."""

    model: PreTrainedModel
    tokenizer: Any
    names: list[str]
    target: State
    unlearned: State

    @property
    def context(self) -> int:
        """Longest input in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)

    def with_state(self, state: State) -> PreTrainedModel:
        """Load these weights into the one model of the pair, and return it."""
        self.model.load_state_dict(state)
        return self.model

    def quantized(self, state: State, format_name: str) -> State:
        """Q(state)."""
        return quantize_state(state, self.names, format_name)


def open_model_pair(target: Path, unlearned: Path) -> Pair:
    """Load both from directories that transformers reads; the tokenizer is the target's, or the other's if it has none.

    Raises:
        ValueError: a directory is no model or has a pickle for weights, shapes or vocabularies differ, or there is no
            tokenizer; one line that begins with the path.
    """
    tokenizers = [_tokenizer(folder) for folder in (target, unlearned)]
    known = [t for t in tokenizers if t is not None]
    if not known:
        raise ValueError(f"{target}: must hold a tokenizer, as must {unlearned} or either")
    if len(known) == 2 and known[0].get_vocab() != known[1].get_vocab():
        raise ValueError(f"{unlearned}: must have the vocabulary of {target}, got another tokenizer")
    model = load_shell(target)
    before = copied(model)
    after = load_shell(unlearned).state_dict()
    _check_shapes(unlearned, before, after)
    return Pair(model, known[0], linear_names(model), before, dict(after))


def load_shell(folder: Path) -> PreTrainedModel:
    """Load a model, float32, in evaluation mode; from safetensors alone, and running no code from the directory.

    Raises:
        ValueError: transformers cannot load it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a directory that transformers loads, for --texts or --benchmark")
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: must be a model that transformers loads, got {first_line(error)}") from None
    return model.eval()


def copied(model: PreTrainedModel) -> State:
    """Return a copy of the model's weights, by name."""
    return {name: w.detach().clone() for name, w in model.state_dict().items()}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the kind of an error that has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"{folder}: must hold a tokenizer that transformers loads, got {first_line(error)}") from None


def _check_shapes(unlearned: Path, before: State, after: State) -> None:
    for name in sorted(before.keys() | after.keys()):
        shapes = [tuple(s[name].shape) if name in s else None for s in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{unlearned}: {name}: must have the target's shape, got {shapes[1]} for {shapes[0]}")

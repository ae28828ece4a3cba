"""A target and the model unlearned from it, loaded to be run: states that one shell takes in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from unforgotten.experiments.models.saved import first_line, load_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.quantizers.quantizer import State


@dataclass(frozen=True)
class Pair:
    """Both states, float32, and the shell that runs them."""

    shell: Shell
    target: State
    unlearned: State


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
    model = load_model(target, attention=None)
    before = state_of(model)
    after = load_model(unlearned, attention=None).state_dict()
    _check_shapes(unlearned, before, after)
    return Pair(Shell(model, known[0]), before, dict(after))


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

"""Models of a run on disk: folders that transformers loads, and how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from unforgotten.records.files import write_folder, write_json

NOTES = "unforgotten.json"
LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""What transformers raises where it cannot load."""

logging.set_verbosity_error()
logging.disable_progress_bar()


def save_model(folder: Path, model: PreTrainedModel, tokenizer: Any, dtype: torch.dtype, notes: dict[str, Any]) -> None:
    """Save weights in `dtype`, tokenizer and notes; the folder appears whole or not at all, and the model ends on the CPU."""

    def fill(place: Path) -> None:
        torch.nn.Module.to(model, "cpu", dtype)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_json(place / NOTES, notes)

    write_folder(folder, fill)


def load_model(folder: Path, *, attention: str | None = "eager") -> PreTrainedModel:
    """Return the model with its weights as float32, in evaluation mode; safetensors alone, no code from the directory.

    Args:
        folder: directory that transformers reads.
        attention: implementation of attention, by transformers' name: "eager" has the faster backward pass on CPUs. None
            is what a user of the model gets.

    Raises:
        ValueError: transformers cannot load it.
    """
    config = check_loadable(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
        )
    except LOADING as error:
        raise ValueError(f"{folder}: must be a model that transformers loads, got {first_line(error)}") from None
    return model.eval()


def check_loadable(folder: Path) -> Any:
    """Return the configuration of a model's directory.

    Raises:
        ValueError: it is no directory, or transformers does not know the model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a directory that transformers loads, for --texts or --benchmark")
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder}: must be one model for --texts or --benchmark, got an adapter; merge it into a folder"
        )
    try:
        return AutoConfig.from_pretrained(folder)
    except LOADING as error:
        raise ValueError(f"{folder}: must be a model that transformers loads, got {first_line(error)}") from None


def generation_settings(folder: Path) -> dict[str, Any]:
    """Return the generation settings that a model's directory holds: they stand in `config.json` in older ones.

    Raises:
        ValueError: the file is no JSON object.
    """
    paths = [folder / name for name in ("generation_config.json", "config.json")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must be a JSON object, got another content")
    return found


def first_line(error: BaseException) -> str:
    """Return what it says first, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer saved beside a model."""
    return AutoTokenizer.from_pretrained(folder)


def load_notes(folder: Path) -> dict[str, Any]:
    """Read the notes that `save_model` wrote beside a model."""
    notes: dict[str, Any] = json.loads((folder / NOTES).read_text())
    return notes

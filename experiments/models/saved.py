"""Models of a run on disk: folders that transformers loads, and how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def load_model(
    folder: Path,
    *,
    attention: str | None = "eager",
    dtype: torch.dtype = torch.float32,
    device_map: str | Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """Return the model with its weights in one dtype, in evaluation mode; safetensors alone, no code from the directory.

    Args:
        folder: directory that transformers reads.
        attention: implementation of attention, by transformers' name: "eager" has the faster backward pass on CPUs. None
            is what a user of the model gets.
        dtype: dtype that the weights are rounded to, but for those that transformers keeps in float32.
        device_map: devices over which the model is spread, as transformers takes it; None for the CPU.

    Raises:
        ValueError: transformers cannot load it, or not all of it fits on the devices of the map.
    """
    config = check_loadable(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
        )
    except LOADING as error:
        raise ValueError(f"{folder}: must be a model that transformers loads, got {first_line(error)}") from None
    if device_map is not None:
        _check_held(folder, model)
    return model.eval()


def _check_held(folder: Path, model: PreTrainedModel) -> None:
    """Refuse a model some of whose weights wait outside it: what is put into it would change nothing."""
    for name, tensor in model.state_dict().items():
        if tensor.device.type == "meta":
            raise ValueError(f"{folder}: must fit on the devices as a whole, got {name} on none of them")


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

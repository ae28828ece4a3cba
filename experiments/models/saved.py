"""Models of a run on disk: folders that transformers loads, and how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from unforgotten.records.files import write_folder, write_json

NOTES = "unforgotten.json"
logging.set_verbosity_error()
logging.disable_progress_bar()


def save_model(folder: Path, model: PreTrainedModel, tokenizer: Any, dtype: torch.dtype, notes: dict[str, Any]) -> None:
    """Save weights in `dtype`, tokenizer and notes; the folder appears whole or not at all."""

    def fill(place: Path) -> None:
        torch.nn.Module.to(model, dtype)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_json(place / NOTES, notes)

    write_folder(folder, fill)


def load_model(folder: Path) -> PreTrainedModel:
    """Load a saved model, its weights as float32, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # its backward is the faster on CPUs
    )
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer saved beside a model."""
    return AutoTokenizer.from_pretrained(folder)


def load_notes(folder: Path) -> dict[str, Any]:
    """Read the notes that `save_model` wrote beside a model."""
    notes: dict[str, Any] = json.loads((folder / NOTES).read_text())
    return notes

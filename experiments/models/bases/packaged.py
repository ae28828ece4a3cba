"""GGUF files that come in Python packages, loaded by transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from unforgotten.records.extras import missing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def folder_of(package: str, requirement: str) -> Path:
    """Return the folder of an installed package, which is not imported.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(missing(package, requirement))
    return Path(spec.origin).parent


def file_of(package: str, requirement: str, pattern: str) -> Path:
    """Return the first file of a package by its pattern.

    Raises:
        ValueError: the package is not installed, or has none.
    """
    folder = folder_of(package, requirement)
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(f"{folder}: must hold a file {pattern}, got none; install {requirement} anew")
    return found[0]


def load_gguf(path: Path) -> PreTrainedModel:
    """Return the model of a GGUF file, dequantized to float32, which can be saved.

    transformers leaves the file's quantization settings in the config, with which a model cannot be: a fresh one takes the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores every setting
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures", "dtype"):
        settings.pop(name, None)
    fresh: PreTrainedModel = type(loaded)(type(loaded.config)(**settings))
    fresh.load_state_dict(loaded.state_dict())
    return fresh

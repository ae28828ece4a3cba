"""Models that a user has: a directory that transformers loads, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unforgotten.records.extras import need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


SETTINGS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files of the configuration and the tokenizer of a model, as patterns."""
WEIGHTS = ("*.safetensors",)


class Directory:
    """A directory that transformers loads, safetensors alone. A `Base`."""

    name = "directory"
    statement = "a directory that transformers loads, base.path"
    trained = True

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Load model and tokenizer.

        Raises:
            ValueError: there is no such directory, or transformers cannot load it.
        """
        if config.path is None:
            raise ValueError("base.path must be given for base.kind directory, got none")
        return loaded(config.path)


class Hub:
    """A repository of the Hub, at a revision. A `Base`."""

    name = "hub"
    statement = "a repository of the Hugging Face Hub, base.repo and base.revision"
    trained = True

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Fetch what transformers needs, and load it.

        Raises:
            ValueError: no repository is named, it cannot be had, or transformers cannot load it.
        """
        if config.repo is None:
            raise ValueError("base.repo must be given for base.kind hub, got none")
        return loaded(fetched(config.repo, config.revision))


def loaded(folder: Path, tokenizer: Path | None = None) -> tuple[PreTrainedModel, Any]:
    """Return model, float32, and tokenizer of a directory; or the tokenizer of another, `tokenizer`.

    Raises:
        ValueError: transformers cannot load one of them.
    """
    from unforgotten.experiments.models.saved import LOADING, first_line, load_model, load_tokenizer

    model, place = load_model(folder), tokenizer or folder
    try:
        return model, load_tokenizer(place)
    except LOADING as error:
        raise ValueError(f"{place}: must hold a tokenizer, got {first_line(error)}") from None


def fetched(repo: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder of a repository in the cache, with its safetensors, tokenizer and configuration.

    Args:
        repo: name of the repository.
        revision: branch, tag or commit; None for the newest.
        weights: whether the safetensors are fetched too.

    Raises:
        ValueError: the client is missing, or the repository cannot be had.
    """
    need("unforgotten[hub]", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = (*SETTINGS, *WEIGHTS) if weights else SETTINGS
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().splitlines()
        raise ValueError(
            f"{repo}: must be a repository of the Hub, got {said[0] if said else type(error).__name__}"
        ) from None


BASES = (Directory(), Hub())

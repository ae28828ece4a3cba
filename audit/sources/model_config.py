"""What the `config.json` beside a checkpoint says of the model: its type, and whether its head is tied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from unforgotten.audit.sources.files import open_file, read_all
from unforgotten.audit.sources.hostile_json import parse_json_object

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 24


@runtime_checkable
class Wrapping(Protocol):
    """A checkpoint that shows another one."""

    @property
    def inner(self) -> object:
        """The one that is shown."""
        ...


@runtime_checkable
class Based(Protocol):
    """A checkpoint over another one."""

    @property
    def base(self) -> object:
        """The one under it."""
        ...


@runtime_checkable
class Configured(Protocol):
    """A checkpoint that knows its configuration by itself, as one of the Hub does."""

    @property
    def model_config(self) -> Mapping[str, object]:
        """What `config.json` says; empty where there is none."""
        ...


def read_config(source: Path, name: str = CONFIG) -> Mapping[str, object] | None:
    """Return the configuration of this name in a local directory; None if there is none.

    Raises:
        CheckpointError: it is no JSON object, or leads out of the directory.
    """
    path = source / name
    if not path.exists():
        return None
    return parse_json_object(path, read_all(open_file(path, source), MAX_CONFIG_BYTES))


def model_config_of(checkpoint: object) -> Mapping[str, object]:
    """Return the configuration of a checkpoint, or of the base of an adapter; empty where there is none."""
    if isinstance(checkpoint, Configured):
        return checkpoint.model_config
    if isinstance(checkpoint, Wrapping):
        return model_config_of(checkpoint.inner)
    if isinstance(checkpoint, Based):
        return model_config_of(checkpoint.base)
    source = getattr(checkpoint, "source", None)
    if not isinstance(source, Path) or not source.is_dir():
        return {}
    return read_config(source) or {}


def model_type_of(config: Mapping[str, object]) -> str | None:
    """Return the type of the text model that a configuration names; None if it names none."""
    inner = config.get("text_config")
    stated = inner.get("model_type") if isinstance(inner, dict) else None
    found = stated or config.get("model_type")
    return found if isinstance(found, str) and found else None


def says_untied(checkpoint: object) -> bool:
    """Return whether the configuration says that the head is no copy of the embedding, and nowhere that it is one.

    Models of text and images have a second one of their text, `text_config`, which alone may know.
    """
    config = model_config_of(checkpoint)
    inner = config.get("text_config")
    stated = [part.get("tie_word_embeddings") for part in (config, inner) if isinstance(part, dict)]
    return any(value is False for value in stated) and not any(value is True for value in stated)

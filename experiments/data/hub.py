"""Data sets of the Hugging Face Hub, written into a folder in the layout that a directory of them has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unforgotten.records.extras import need
from unforgotten.records.files import write_json

if TYPE_CHECKING:
    from unforgotten.experiments.data.settings import CorpusConfig

HUB = "hub:"


class Part(NamedTuple):
    """One part of a data set of the Hub.

    Attributes:
        configuration: configuration of the data set.
        split: split of it.
        item: function that gives what the file holds of a row.
    """

    configuration: str
    split: str
    item: Callable[[Mapping[str, Any]], Any] = dict


def fetch(config: CorpusConfig, parts: Mapping[str, Part], folder: Path) -> str:
    """Write parts of the data set `config.repo` that are not there yet as JSON lists; return its origin, for the rows.

    Args:
        config: settings with the name of the data set and its revision.
        parts: parts by the file that takes them, below `folder`.
        folder: folder that takes the files.

    Raises:
        ValueError: `datasets` is missing, or a part cannot be had or does not read so; one line.
    """
    for name, part in parts.items():
        if not (folder / name).exists():
            write_json(folder / name, [_item(config, part, row) for row in _rows(config, part)])
    return f"{HUB}{config.repo}" + (f"@{config.revision}" if config.revision else "")


def _rows(config: CorpusConfig, part: Part) -> list[Any]:
    need("unforgotten[data]", "datasets")
    library, errors = import_module("datasets"), import_module("datasets.exceptions")  # type checkers do not have it
    try:
        return list(library.load_dataset(config.repo, part.configuration, split=part.split, revision=config.revision))
    except (OSError, ValueError, RuntimeError, errors.DatasetsError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"corpus.repo must be a data set of the Hub with {part.configuration}/{part.split}, got {config.repo}: {said}"
        ) from None


def _item(config: CorpusConfig, part: Part, row: Any) -> Any:
    try:
        return part.item(row)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{config.repo}: {part.configuration}/{part.split} must have the columns of its data set, got {sorted(row)}"
        ) from None

"""What a data set is: where the text of a run comes from.

A data set is a file of this folder with a module-level `CORPORA`; `registry.py` finds it there, and a profile sets it by its name
as `corpus.kind`. It reads its own layout into a `Corpus`, whatever that is. `hub.py` fetches what is on the Hugging Face Hub into
the folder of the run, in the layout that a directory has, so that both are read by the same lines. A run is held to the files that
it began with: those that `layout.py` read, or all of the directory where a data set reads it by other functions.

`unforgotten corpora` lists them where torch is missing, so a file of this folder imports what is heavy inside of its functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from unforgotten.experiments.data.corpus import Corpus
    from unforgotten.experiments.data.settings import CorpusConfig


class DataSet(Protocol):
    """Where text comes from."""

    @property
    def name(self) -> str:
        """Name in profiles, `corpus.kind`."""
        ...

    @property
    def statement(self) -> str:
        """What it is, in a few words."""
        ...

    @property
    def source(self) -> str:
        """Where it is from."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """What can be forgotten, `corpus.split`; the first where a profile says nothing."""
        ...

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Its own settings by section, which a run on it has where its profile says nothing."""
        ...

    def read(self, config: CorpusConfig, seed: int, folder: Path) -> tuple[Corpus, str]:
        """Return the text of a run, and its origin for the rows.

        Args:
            config: settings of the text.
            seed: seed of the run.
            folder: folder of the run for what is generated or fetched.

        Raises:
            ValueError: the data is not there, or not in its layout; one line.
        """
        ...


def split_of(config: CorpusConfig, splits: tuple[str, ...]) -> str:
    """Return the split that a profile names, or the first."""
    return config.split or splits[0]

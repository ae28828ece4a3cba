"""The text of a run, whichever data set it is from."""

from __future__ import annotations

from pathlib import Path

from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.registry import corpus_named
from unforgotten.experiments.data.settings import CorpusConfig


def prepare_corpus(config: CorpusConfig, seed: int, folder: Path) -> tuple[Corpus, str]:
    """Return the corpus of a run, and its origin for the rows: "fiction", "muse:<place>", "tofu-<split>:<place>".

    Raises:
        ValueError: the data is not there, or not in its layout.
    """
    return corpus_named(config.kind).read(config, seed, folder)

"""The data sets by name, found in the modules beside this one."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.data.source import DataSet
from unforgotten.experiments.declared import by_name, declared


def find_corpora() -> Mapping[str, DataSet]:
    """Return the data sets that the modules of this package declare in `CORPORA`."""
    return by_name(declared("unforgotten.experiments.data", "CORPORA"))


CORPORA: Mapping[str, DataSet] = find_corpora()


def corpus_named(name: str) -> DataSet:
    """Return the data set of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus.kind must be one of {', '.join(CORPORA)}, got {name!r}")
    return CORPORA[name]

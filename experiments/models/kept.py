"""What models said of texts, kept on disk, so that a measurement that was cut off goes on where it was.

In go what decides the answer and a function that finds it; out come the rows, found or read:

    kept = Kept(Path("audits/latest/unfinished"))
    kept.rows(["scores", digest_of_weights, documents], lambda: token_scores(model, documents, 8))
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.records.files import KEPT, write_bytes

DECIDING = ("unforgotten", "torch", "transformers")
"""Packages whose version decides what is computed."""


class Kept:
    """Rows of numbers by what decides them, one file each.

    Args:
        folder: directory of the files, made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, decides: Sequence[Any], make: Callable[[], Iterable[Any]]) -> list[NDArray[Any]]:
        """Return the rows that `make` returned for what decides them, now or in an earlier process.

        Args:
            decides: all that the rows depend on but the code: values that JSON has.
            make: function that finds the rows, arrays of one dtype and of any lengths.
        """
        path = self.folder / f"{_key(decides)}{KEPT}"
        found = _read(path)
        if found is None:
            found = [np.asarray(row) for row in make()]
            write_bytes(path, _packed(found))
        return found


def _key(decides: Sequence[Any]) -> str:
    text = json.dumps([[version(name) for name in DECIDING], *decides])
    return hashlib.sha256(text.encode()).hexdigest()


def _packed(rows: Sequence[NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    values = np.concatenate(rows) if rows else np.empty(0)
    np.savez(stream, values=values, lengths=np.array([len(row) for row in rows], np.int64))
    return stream.getvalue()


def _read(path: Path) -> list[NDArray[Any]] | None:
    """Return the rows of a file; None where there is none, or none of ours."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            values, lengths = stored["values"], stored["lengths"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if values.ndim != 1 or lengths.ndim != 1 or lengths.sum() != len(values):
        return None
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []

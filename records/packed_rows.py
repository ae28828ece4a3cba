"""The rows of a run as bytes: `rows.jsonl` where the run writes them, the same lines compressed once it is published.

rows_content(Path("reports/published/cures/bf16-seed0")).splitlines()[0]
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

ROWS_FILE = "rows.jsonl"
PACKED_ROWS = "rows.jsonl.gz"
"""Rows of a published run: a tenth of the size, and what is in them does not say when they were packed."""


def holds_rows(folder: Path) -> bool:
    """Whether a folder holds the rows of a run, packed or not."""
    return any((folder / name).is_file() for name in (ROWS_FILE, PACKED_ROWS))


def rows_path(folder: Path) -> Path:
    """Return the file of a run's rows.

    Raises:
        ValueError: the folder or the file is missing, or there are both; one line.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be the directory of a run, got no directory there")
    there = [folder / name for name in (ROWS_FILE, PACKED_ROWS) if (folder / name).is_file()]
    if not there:
        raise ValueError(f"{folder / ROWS_FILE}: must exist, got a directory without {ROWS_FILE}")
    if len(there) > 1:
        raise ValueError(f"{folder}: must hold the rows of a run once, got {ROWS_FILE} and {PACKED_ROWS}")
    return there[0]


def rows_content(folder: Path) -> bytes:
    """Return the lines of a run's rows.

    Raises:
        ValueError: as `rows_path`, or a packed file is damaged; one line.
    """
    path = rows_path(folder)
    content = path.read_bytes()
    if path.name == ROWS_FILE:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: must hold rows that gzip packed, got {error}") from None


def packed(content: bytes) -> bytes:
    """Return bytes as a published run keeps them: the same give the same, whenever they are packed."""
    return gzip.compress(content, mtime=0)

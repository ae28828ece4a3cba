"""Where an audit may write: a new directory, an empty one, or one that holds an earlier audit and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from unforgotten.audit.outputs.result import JSON_FILE
from unforgotten.audit.outputs.write import FILES, UNFINISHED
from unforgotten.records.files import BUILDING, KEPT

MARK = b'"schema": "unforgotten.audit/'
MARK_WITHIN = 4096  # of the beginning of audit.json


def check_out(out: Path, *, force: bool = False) -> None:
    """Refuse a directory that could not be made, or one of other files, before anything is read.

    Args:
        out: directory to write to.
        force: whether a directory of other files is taken; what there has a name of an audit's file is replaced.

    Raises:
        ValueError: it is not such a directory.
    """
    if "\0" in str(out):
        raise ValueError(f"out must be a path, got out={str(out)!r}")
    first = next((p for p in (out, *out.parents) if os.path.lexists(p)), None)
    if first is not None and not first.is_dir():
        raise ValueError(f"out must be a directory, or one that can be made, got out={str(out)!r}")
    foreign = None if force or first != out else _foreign(out)
    if foreign is not None:
        rule = "out must be a new directory, or one of an earlier audit alone (--force writes there all the same)"
        raise ValueError(f"{rule}, got out={str(out)!r}, which holds {foreign!r}")


def _foreign(out: Path) -> str | None:
    """Return the name of a file that no audit wrote; None where all are an audit's."""
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith(BUILDING))
    if _is_unfinished(out / UNFINISHED):
        names.remove(UNFINISHED)
    others = [name for name in names if name not in FILES]
    if others or not names:
        return others[0] if others else None
    if JSON_FILE not in names:
        return names[0]
    return None if _is_ours(out / JSON_FILE) else JSON_FILE


def _is_unfinished(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and all(path.name.endswith(KEPT) for path in folder.iterdir())


def _is_ours(path: Path) -> bool:
    """Tell whether an `audit.json` is one of ours; a link is replaced and never followed, wherever it leads."""
    if path.is_symlink() or not path.is_file():
        return path.is_symlink()
    with path.open("rb") as file:
        return MARK in file.read(MARK_WITHIN)

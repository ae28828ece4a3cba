"""Files written whole or not at all, one or several of them; and JSON lines, read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BUILDING = ".building-"
"""What the name of a folder begins with, in which several files are built before they are moved."""
KEPT = ".kept.npz"
"""What the name of a file ends with, in which the answers of a model are kept until an audit is done."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, in UTF-8, in one step."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by strict JSON; NaN is refused."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder aside, then put it in place of `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_together(out: Path, names: Sequence[str], build: Callable[[Path], None]) -> None:
    """Let `build` write files aside, then put them into the folder `out`, all or none.

    What fails while they are built, as a full disk does, leaves the old files. If a move fails or is interrupted, those
    that were made are taken back. Each file is the old or the new one at any time; only a killed process or a lost
    machine can leave a mix.

    Args:
        out: folder of the files, made if it is missing.
        names: names of the files, in the order in which they are moved.
        build: function that writes a file of each name into the folder that it is given.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=out) as building:
        build(Path(building))
        _move_all(Path(building), out, names)


def _move_all(building: Path, out: Path, names: Sequence[str]) -> None:
    """Move the files to `out`, keeping the old ones under another name until all are there."""
    old = building / "old"
    old.mkdir()
    for name in names:
        if (out / name).exists():
            os.link(out / name, old / name)
    try:
        for name in names:
            os.replace(building / name, out / name)
    except BaseException:
        for name in names:
            if (old / name).exists():
                os.replace(old / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)
        raise


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file that holds one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` by one line of strict JSON a row, in one step."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def drop_kept(folder: Path) -> None:
    """Delete the files of KEPT in a folder, and the folder where it holds no others; nothing where there is none."""
    for path in folder.glob(f"*{KEPT}"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

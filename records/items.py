"""The values of the single items of a run: `items/*.json` while it runs, one compressed file once it is published.

read_items(Path("reports/published/tiny-seed0"), "items/target-none.json")["M1"]
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from unforgotten.records.files import write_bytes, write_folder
from unforgotten.records.packed_rows import PACKED_ROWS, ROWS_FILE, packed

PACKED = "items.jsonl.gz"
"""One line for each file of items, in the order of their names: `{"file": "items/…", "items": {metric: […]}}`."""
CONFIG = "config.json"

Items = Mapping[str, list[float]]


def read_items(folder: Path, name: str) -> Items:
    """Return the values of one model's items, by metric.

    Args:
        folder: directory of the run, published or not.
        name: what the rows call its file, `items/….json`.

    Raises:
        ValueError: the run holds no such items; one line.
    """
    path, packed = folder / name, folder / PACKED
    found: Items | None = None
    if not path.exists() and packed.exists():
        state = packed.stat()
        found = _packed(packed, state.st_mtime_ns, state.st_size).get(name)
    else:
        with suppress(OSError, ValueError):  # told as none below
            found = json.loads(path.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{path}: must be the items that the rows of the run name, got none")
    return found


def publish_run(run: Path, out: Path) -> None:
    """Put configuration, rows and items of a run into the folder `out`, in one step; rows and items compressed, one file each.

    Raises:
        ValueError: the run lacks one of them, or `out` exists; one line.
    """
    for name in (CONFIG, ROWS_FILE):
        if not (run / name).is_file():
            raise ValueError(f"{run}: must be a run, which holds {name}, got none")
    if out.exists():
        raise ValueError(f"{out}: must be a new folder, got one that exists")

    def fill(there: Path) -> None:
        shutil.copy(run / CONFIG, there / CONFIG)
        write_bytes(there / PACKED_ROWS, packed((run / ROWS_FILE).read_bytes()))
        write_bytes(there / PACKED, packed_items(run))

    write_folder(out, fill)


def packed_items(run: Path) -> bytes:
    """Return the files of items of a run as one: the same files give the same lines, whatever their dates."""
    lines = [
        json.dumps(
            {"file": f"items/{path.name}", "items": json.loads(path.read_text(encoding="utf-8"))}, allow_nan=False
        )
        for path in sorted((run / "items").glob("*.json"))
    ]
    return packed("".join(line + "\n" for line in lines).encode())


@lru_cache(maxsize=16)
def _packed(path: Path, _date: int, _size: int) -> Mapping[str, Items]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        return {line["file"]: line["items"] for line in map(json.loads, lines)}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: must hold a line of JSON for each file of items, got {error}") from None


if __name__ == "__main__":
    publish_run(*map(Path, sys.argv[1:]))

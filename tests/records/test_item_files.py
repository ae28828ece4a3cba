"""Items are the same before and after they were published, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from unforgotten.records.items import PACKED, packed_items, publish_run, read_items
from unforgotten.records.packed_rows import rows_content

PUBLISHED = Path(__file__).parents[2] / "reports/published"
WHOLE = (PUBLISHED / "tiny-seed0" / PACKED).read_bytes()
ITEMS = {
    "items/target-none.json": {"M1": [0.1, 1 / 3, 5e-324], "M2": []},
    "items/unlearned-GA-bf16-pair.json": {"forget_loss@Q(target)": [2.0]},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "items").mkdir(parents=True)
    for name, items in ITEMS.items():
        (folder / name).write_text(json.dumps(items))
    for name in ("rows.jsonl", "config.json", "stages.json"):
        (folder / name).write_text(f'"{name}"\n')
    return folder


def test_a_published_run_has_the_items_it_had(run: Path, tmp_path: Path) -> None:
    publish_run(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"rows.jsonl.gz", "config.json", PACKED}
    for name, items in ITEMS.items():
        assert read_items(run, name) == read_items(tmp_path / "out", name) == items


def test_the_same_items_are_the_same_bytes_whatever_their_dates(run: Path) -> None:
    before = packed_items(run)
    for path in (run / "items").iterdir():
        os.utime(path, (1, 1))
    assert packed_items(run) == before


def test_what_cannot_be_read_or_published_is_named(run: Path, tmp_path: Path) -> None:
    publish_run(run, tmp_path / "out")
    for folder in (run, tmp_path / "out"):
        with pytest.raises(ValueError, match=r"items/base-none\.json: must be the items that the rows of the run name"):
            read_items(folder, "items/base-none.json")
    (run / "items/target-none.json").write_text('{"M1": [')
    with pytest.raises(ValueError, match=r"target-none\.json: must be the items"):
        read_items(run, "items/target-none.json")
    with pytest.raises(ValueError, match=r"out: must be a new folder, got one that exists"):
        publish_run(run, tmp_path / "out")
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"run: must be a run, which holds config\.json, got none"):
        publish_run(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", WHOLE[:-9], b"\x1f\x8b", gzip.compress(b"[1]\n", mtime=0)],
    ids=["empty", "no gzip", "cut", "head alone", "no object"],
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / PACKED).write_bytes(content)
    with pytest.raises(ValueError, match=r"items"):
        read_items(tmp_path, "items/target-none.json")


@pytest.mark.parametrize("folder", sorted(PUBLISHED.glob("**/items.jsonl.gz")), ids=lambda path: path.parent.name)
def test_every_row_of_a_published_run_has_the_items_it_names(folder: Path) -> None:
    rows = map(json.loads, rows_content(folder.parent).splitlines())
    named = {(row["items"], row["metric"], row["n"]) for row in rows if row["items"] is not None}
    assert named
    for name, metric, n in named:
        assert len(read_items(folder.parent, name)[metric]) == n

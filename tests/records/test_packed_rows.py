"""Rows that are packed are read as they were, and a folder that holds them twice or damaged is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.records.packed_rows import PACKED_ROWS, ROWS_FILE, holds_rows, packed, rows_content, rows_path
from unforgotten.records.rows import read_run
from unforgotten.reports.exports.export import export

PUBLISHED = Path(__file__).parents[2] / "reports/published"
PLAIN = PUBLISHED / "tiny-arms-seed0"


@pytest.fixture
def packed_run(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    shutil.copytree(PLAIN, folder)
    (folder / PACKED_ROWS).write_bytes(packed((folder / ROWS_FILE).read_bytes()))
    (folder / ROWS_FILE).unlink()
    return folder


def test_a_packed_run_is_the_run(packed_run: Path) -> None:
    assert read_run(packed_run) == read_run(PLAIN)
    assert holds_rows(packed_run)
    assert rows_path(packed_run).stat().st_size < rows_path(PLAIN).stat().st_size / 5


@given(st.binary())
def test_bytes_come_back_and_are_packed_alike(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / PACKED_ROWS).write_bytes(packed(content))
    assert rows_content(folder) == content
    assert packed(content) == packed(content)


def test_a_line_that_breaks_a_rule_is_named_with_its_file(packed_run: Path) -> None:
    lines = rows_content(packed_run).splitlines(keepends=True)
    (packed_run / PACKED_ROWS).write_bytes(packed(b"".join([*lines[:2], b'{"model": 1}\n', *lines[2:]])))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz.*3"):
        read_run(packed_run)


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_damaged_file_is_refused_in_one_line(packed_run: Path, cut: int) -> None:
    path = packed_run / PACKED_ROWS
    path.write_bytes(path.read_bytes()[:cut] if cut else b"no gzip")
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: must hold rows that gzip packed, got") as found:
        read_run(packed_run)
    assert "\n" not in str(found.value)


def test_rows_that_are_there_twice_are_refused(packed_run: Path) -> None:
    shutil.copy(PLAIN / ROWS_FILE, packed_run)
    with pytest.raises(
        ValueError, match=r"packed: must hold the rows of a run once, got rows\.jsonl and rows\.jsonl\.gz"
    ):
        read_run(packed_run)


def test_no_rows_are_none(tmp_path: Path) -> None:
    assert not holds_rows(tmp_path)
    with pytest.raises(ValueError, match=r"rows\.jsonl: must exist, got a directory without rows\.jsonl"):
        rows_path(tmp_path)
    with pytest.raises(ValueError, match="none: must be the directory of a run, got no directory there"):
        rows_path(tmp_path / "none")


def test_a_packed_run_is_exported_as_the_run_is(packed_run: Path, tmp_path: Path) -> None:
    names = [
        export(folder, "openunlearning", out) for folder, out in ((packed_run, tmp_path / "a"), (PLAIN, tmp_path / "b"))
    ]
    assert [path.name for path in names[0]] == [path.name for path in names[1]]
    assert names[0]

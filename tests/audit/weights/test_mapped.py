"""Workers map what others read: the same weights, and the same words where a file is no longer what it was."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten.audit import open_checkpoint
from unforgotten.audit.kernel.simd import available_paths
from unforgotten.audit.sources import files
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import mapping_files, open_file
from unforgotten.audit.weights.batches import Batch, Work, measure_batch
from unforgotten.theory.formats.names import format_named
from unforgotten.verification.chance import rng_for

PAGE = os.sysconf("SC_PAGE_SIZE")
FORMATS = ("nf4-b64", "nvfp4", "int8-row", "q4_0")
CUT = """
import os, sys
from pathlib import Path
from unforgotten.audit import open_checkpoint
from unforgotten.audit.sources import files
from unforgotten.audit.weights.batches import Batch, Work, measure_batch
from unforgotten.audit.kernel.simd import available_paths
from unforgotten.theory.formats.names import format_named

target, unlearned, size, *names = sys.argv[1:]
formats = tuple(map(format_named, names))
pair = map(open_checkpoint, map(Path, (target, unlearned)))
work = Work(*pair, formats, available_paths()[0])
os.truncate(unlearned, int(size))
try:
    with files.mapping_files():
        measure_batch(work, Batch("w.weight", 0, 1))
except ValueError as error:
    print(error)
"""


@pytest.fixture
def mapping() -> Iterator[None]:
    with mapping_files():
        yield


def populates() -> bool:
    """Whether the system knows the advice, asked without the code under test."""
    try:
        mmap.mmap(-1, PAGE).madvise(files.POPULATE)
    except (AttributeError, OSError):
        return False
    return True


needs_populate = pytest.mark.skipif(not populates(), reason="MADV_POPULATE_READ is of Linux 5.14")


@needs_populate
@pytest.mark.usefixtures("mapping")
@pytest.mark.parametrize("offset", [0, 8, PAGE - 2, PAGE, PAGE + 24])
@pytest.mark.parametrize("nbytes", [2, PAGE, 3 * PAGE + 2])
def test_look__sees_the_bytes_of_the_file(offset: int, nbytes: int, tmp_path: Path) -> None:
    content = rng_for("mapped").integers(0, 256, 6 * PAGE, np.uint8)
    path = tmp_path / "f"
    path.write_bytes(content.tobytes())
    seen = open_file(path).look(offset, nbytes)
    assert seen is not None
    assert np.array_equal(seen, content[offset : offset + nbytes])


def test_look__maps_nothing_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    assert open_file(path).look(0, 10) is None


def save_pair(folder: Path) -> tuple[Path, Path]:
    rng = rng_for("mapped pair")
    w: Any = (0.02 * rng.standard_normal((128, 256))).astype(ml_dtypes.bfloat16)
    paths = folder / "t.safetensors", folder / "u.safetensors"
    save_file({"w.weight": w}, paths[0])
    save_file({"w.weight": (w + 1e-3).astype(w.dtype)}, paths[1])
    return paths


def measure(paths: tuple[Path, Path]) -> Any:
    target, unlearned = map(open_checkpoint, paths)
    formats = tuple(map(format_named, FORMATS))
    return Work(target, unlearned, formats, available_paths()[0]), Batch("w.weight", 0, 1)


def test_mapped_weights_are_measured_like_read_ones(tmp_path: Path) -> None:
    asked = measure(save_pair(tmp_path))
    [read] = measure_batch(*asked)
    with mapping_files():
        [mapped] = measure_batch(*asked)
    for name, part in read.parts.items():
        pairs: list[tuple[Any, Any]] = list(zip(part, mapped.parts[name], strict=True))
        assert all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


@pytest.mark.parametrize("size", [0, 100, PAGE])
def test_a_file_that_was_cut_is_named(size: int, tmp_path: Path) -> None:
    """In a process of its own: where the cut is not seen, the mapped file kills the one that looks at it."""
    command = [sys.executable, "-P", "-c", CUT, *map(str, save_pair(tmp_path)), str(size), *FORMATS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = f"u.safetensors must stay as it is while it is read, got {size} bytes"
    assert said in done.stdout


@needs_populate
@pytest.mark.usefixtures("mapping")
def test_a_file_that_changes_while_it_is_mapped_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look before passes; that after the last piece does not."""
    paths = save_pair(tmp_path)
    asked = measure(paths)
    looked = files.LocalFile.look

    def look(self: files.LocalFile, offset: int, nbytes: int) -> Any:
        found = looked(self, offset, nbytes)
        os.utime(self.real, ns=(0, 0))
        return found

    monkeypatch.setattr(files.LocalFile, "look", look)
    with pytest.raises(CheckpointError, match="must stay as it is while it is read, got another"):
        measure_batch(*asked)

"""Machine code is kept where that can be, and where it cannot nothing is lost but time."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numba
import pytest

SCRIPT = """
import errno, sys
from numba.core import caching
from unforgotten.audit.kernel import compiled as module
from unforgotten.audit.kernel.compiled import compiled

module.kernel_digest = lambda: sys.argv[2]
if sys.argv[1] == "full":
    def save(self, key, data):
        raise OSError(errno.ENOSPC, "No space left on device")
    caching.IndexDataCacheFile.save = save

@compiled()
def twice(x):
    return 2 * x

print(twice(21), sum(twice.stats.cache_hits.values()))
"""


def hits_of(disk: str, digests: str, folder: Path) -> list[int]:
    """Found machine code, of one process after another: a letter of `digests` is the digest of the kernel in each."""
    path = folder / "script.py"
    path.write_text(SCRIPT)
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    hits = []
    for digest in digests:
        command = [sys.executable, "-P", str(path), disk, digest]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert not run.stderr
        result, found = map(int, run.stdout.split())
        assert result == 42
        hits.append(found)
    return hits


@pytest.mark.parametrize(("disk", "hits"), [("full", 0), ("free", 1)])
def test_compiled__needs_no_room_for_its_cache(disk: str, hits: int, tmp_path: Path) -> None:
    assert hits_of(disk, "aa", tmp_path) == [0, hits]


def test_compiled__finds_no_code_of_another_kernel(tmp_path: Path) -> None:
    """The function is the same, but a module that it may inline is not."""
    assert hits_of("free", "aabb", tmp_path) == [0, 1, 0, 1]


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(b"", marks=NIGHTLY),
        pytest.param(b"junk", marks=NIGHTLY),
        b"cunforgotten.audit.kernel.rules\nNoMore\n.",
    ],
)
def test_compiled__throws_away_what_it_cannot_read(index: bytes, tmp_path: Path) -> None:
    """As after an upgrade: the index of the cache names a class of the kernel that is no more."""
    assert hits_of("free", "a", tmp_path) == [0]
    [kept] = (tmp_path / "cache").rglob("*.nbi")
    kept.write_bytes(pickle.dumps(numba.__version__) + index)
    assert hits_of("free", "aa", tmp_path) == [0, 1]

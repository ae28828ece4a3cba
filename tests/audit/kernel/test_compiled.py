"""Machine code is kept where that can be, and where it cannot nothing is lost but time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import errno, sys
from numba.core import caching
from unforgotten.audit.kernel.compiled import compiled

if sys.argv[1] == "full":
    def save(self, key, data):
        raise OSError(errno.ENOSPC, "No space left on device")
    caching.IndexDataCacheFile.save = save

@compiled()
def twice(x):
    return 2 * x

print(twice(21), sum(twice.stats.cache_hits.values()))
"""


@pytest.mark.parametrize(("disk", "hits"), [("full", 0), ("free", 1)])
def test_compiled__needs_no_room_for_its_cache(disk: str, hits: int, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    runs = [
        subprocess.run([sys.executable, "-P", path, disk], env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["42", "0"], ["42", str(hits)]]
    assert not any(run.stderr for run in runs)

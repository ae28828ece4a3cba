"""A worker finds out whether to map its files or to read them."""

from __future__ import annotations

import time

import pytest

from unforgotten.audit.sources import files
from unforgotten.audit.weights import reading


@pytest.mark.parametrize(("mapped", "read"), [(1.0, 2.0), (2.0, 1.0)])
def test_fetching__keeps_the_faster_way(mapped: float, read: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    ways = reading.Fetching()
    seen = []
    for size in (1, 8, 16, 8, reading.LEAST - 1, 8, 8):
        with ways.of(size):
            seen.append(files.maps_files())
            clock[0] += size * (mapped if files.maps_files() else read)
    fast = mapped < read
    assert seen == [False, True, True, False, False, fast, fast]

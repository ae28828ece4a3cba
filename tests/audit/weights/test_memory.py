"""How much memory a weights leg takes, whatever the size of a tensor."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest

from unforgotten.verification.chance import rng_for

MEMORY = """
import resource, sys
from pathlib import Path
from unforgotten.audit import open_checkpoint, weights_leg
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
one, two = (open_checkpoint(Path(p)) for p in sys.argv[1:3])
leg = weights_leg(one, two, sys.argv[3].split(","))
print(leg.tensors[0].survival[next(iter(leg.totals))].weights, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
ALLOWED_KIB = 160 << 10


@pytest.mark.parametrize(
    "shape",
    [pytest.param((12288, 8192), id="rows", marks=pytest.mark.nightly), pytest.param((8, 12582912), id="long rows")],
)
def test_memory_does_not_grow_with_the_tensor(shape: tuple[int, int], tmp_path: Path) -> None:
    """A tensor of 96 Mi weights, 192 MiB a checkpoint and 768 MiB as a pair of float32, within 160 MiB."""
    nbytes = 2 * math.prod(shape)
    header = f'{{"a.weight":{{"dtype":"BF16","shape":[{shape[0]},{shape[1]}],"data_offsets":[0,{nbytes}]}}}}'
    header += " " * (-len(header) % 8)
    files = [tmp_path / f"{name}.safetensors" for name in "tu"]
    w: Any = (0.02 * rng_for("memory").standard_normal(1 << 20)).astype(ml_dtypes.bfloat16)
    for path in files:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header.encode())
            for _ in range(nbytes // w.nbytes):
                file.write(w.tobytes())
            w = -w
    formats = "nf4-b64,int8-row,int4-tensor,q8_0"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, files), formats], check=True, capture_output=True, text=True
    )
    weights, peak_kib = map(int, done.stdout.split())
    assert weights == math.prod(shape)
    assert peak_kib < ALLOWED_KIB

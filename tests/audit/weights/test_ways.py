"""How a format is measured is decided by what it is, by the tensor, and by the path."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten.audit import open_checkpoint, weights_leg
from unforgotten.audit.kernel.entries import FINITE
from unforgotten.audit.kernel.simd import VARIABLE, VECTOR_PATHS
from unforgotten.audit.weights.piece import MEASURE
from unforgotten.audit.weights.ways import Way, way_of
from unforgotten.theory.formats.names import format_named

BITS, NUMBERS = ("bfloat16", "bfloat16"), ("bfloat16", "float32")


@pytest.mark.parametrize("path", VECTOR_PATHS)
@pytest.mark.parametrize(
    ("name", "shape", "dtypes", "way"),
    [
        ("nf4-b64", (4, 128), BITS, "magnitudes"),
        ("nf4-b64", (4, 128), NUMBERS, "vectors"),
        ("q4_0", (4, 128), BITS, "vectors"),  # its scale has the sign of the largest weight
        ("nf4-b64", (4, 100), BITS, "magnitudes"),  # its blocks run on over the rows
        ("int4-g64", (4, 100), BITS, "scalar"),  # its blocks end with a row
        ("int4-g64-ct-asym", (4, 128), BITS, "scalar"),
        ("q4_k", (4, 256), BITS, "searched"),
        ("fp8-row", (4, 128), BITS, "scalar"),
        ("fp8-b128x128", (256, 256), BITS, "tiles"),
        ("fp8-b128x128", (4, 100), NUMBERS, "tiles"),
        ("nvfp4", (FINITE, 16), BITS, "vectors"),
        ("nvfp4", (FINITE + 1, 16), BITS, "magnitudes"),  # a table for each tensor is for large ones
    ],
)
def test_way_of(path: str, name: str, shape: tuple[int, ...], dtypes: tuple[str, str], way: str) -> None:
    assert way_of(format_named(name), shape, dtypes, path) == way
    slower = way if way in ("searched", "tiles") else "scalar"
    assert way_of(format_named(name), shape, dtypes, "scalar") == slower
    assert way_of(format_named(name), shape, dtypes, "numpy") == "whole"


def test_the_audit_says_which_ways_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "tu":
        w = np.arange(-512, 512, dtype=np.float32).reshape(4, 256) / 1024
        content = {"a.weight": w.astype(ml_dtypes.bfloat16), "b.weight": w}
        save_file(content, tmp_path / f"{name}.safetensors")
    target, unlearned = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "tu")
    for path, expected in (("scalar", {"scalar": 2}), ("numpy", {"whole": 2})):
        monkeypatch.setenv(VARIABLE, path)
        computed = weights_leg(target, unlearned, ["nf4-b64"]).computed
        assert computed["ways"] == {"nf4-b64": expected}
        assert computed["path"] == path


def test_every_way_has_a_function() -> None:
    assert set(MEASURE) == set(get_args(Way)) - {"whole"}

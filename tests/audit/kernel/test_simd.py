"""Which paths of the kernel there are, which is taken, and that no instruction is compiled that was not asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest
from numba import types
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import DEFAULT_FORMATS, CheckpointError, open_checkpoint, weights_leg
from unforgotten.audit.kernel import simd
from unforgotten.audit.kernel.simd import NUMPY, SMALL, VARIABLE, VECTOR_PATHS, available_paths
from unforgotten.theory.formats.names import format_named
from unforgotten.verification.agreement import assert_agree
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.kernel_assembly import WEIGHTS, tile_assembly

Array = NDArray[Any]
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
MACHINES = [
    # triple, processor, features -> the vector paths that LLVM has the instructions for
    (X86, "x86-64", "", ()),
    (X86, "haswell", "", ("avx2",)),
    (X86, "haswell", "-fma", ()),
    (X86, "znver3", "", ("avx2",)),
    (X86, "knl", "", ("avx2",)),  # AVX-512 without BW, DQ and VL
    (X86, "skylake-avx512", "", ("avx512", "avx2")),
    (X86, "znver4", "-avx512dq", ("avx2",)),
    (ARM, "generic", "", ("neon",)),
    ("arm64-apple-darwin", "apple-m1", "", ("neon",)),
]


@pytest.mark.parametrize(("triple", "cpu", "features", "expected"), MACHINES)
def test_has_instructions__is_what_llvm_makes_of_plain_code(
    triple: str, cpu: str, features: str, expected: tuple[str, ...]
) -> None:
    found = [p for p in VECTOR_PATHS if simd.has_instructions(p, triple, cpu, features)]
    assert tuple(found) == expected


def test_available_paths__end_with_those_of_any_processor() -> None:
    assert available_paths()[-2:] == ("scalar", "numpy")
    assert set(available_paths()) <= {*VECTOR_PATHS, "scalar", "numpy"}


@pytest.mark.parametrize(("named", "size"), [("auto", SMALL + 1), ("", SMALL + 1)])
def test_path_for__is_the_fastest_one(named: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, named)
    assert simd.path_for(size) == available_paths()[0]


def test_path_for__of_small_work_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert simd.path_for(SMALL) == NUMPY
    monkeypatch.setenv(VARIABLE, "scalar")
    assert simd.path_for(1) == "scalar", "a path that is named is taken, however small the work"


@pytest.mark.parametrize("named", ["avx1024", "AVX2"])
def test_path_for__refuses_what_is_not_there(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(ValueError, match=f"{VARIABLE} must be one of .*scalar.* got '{named}'"):
        simd.path_for(1)


def save_pair(folder: Path, shape: tuple[int, int]) -> tuple[Path, Path]:
    rng = rng_for("paths", *shape)
    w: Array = (0.02 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)
    moved: Array = (w.astype(np.float32) + 1e-3 * rng.standard_normal(shape)).astype(w.dtype)
    paths = folder / "t.safetensors", folder / "u.safetensors"
    for path, content in zip(paths, (w, moved), strict=True):
        save_file({"a.weight": content}, path)
    return paths


def test_every_path_gives_the_same_leg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [open_checkpoint(path) for path in save_pair(tmp_path, (48, 640))]
    legs = {}
    for path in available_paths():
        monkeypatch.setenv(VARIABLE, path)
        legs[path] = weights_leg(pair[0], pair[1], DEFAULT_FORMATS)
        assert legs[path].computed["path"] == path
    reference = legs[NUMPY]
    for leg in legs.values():
        assert (leg.binades, leg.precision) == (reference.binades, reference.precision)
        for setting, total in leg.totals.items():
            assert_agree(total, reference.totals[setting])


@pytest.mark.parametrize("path", [available_paths()[0], NUMPY])
def test_every_path_refuses_alike(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, path)
    bad: Array = np.zeros((4, 64), np.float32)
    bad[1, 7] = np.nan
    save_file({"a.weight": bad}, tmp_path / "bad.safetensors")
    save_file({"a.weight": bad[:, :40].copy() * 0 + 1}, tmp_path / "narrow.safetensors")
    two = open_checkpoint(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="must be finite"):
        weights_leg(two, two, ["nf4-b64"])
    bad[1, 7] = 0
    save_file({"a.weight": bad[:, :40].copy()}, tmp_path / "narrow.safetensors")
    narrow = open_checkpoint(tmp_path / "narrow.safetensors")
    with pytest.raises(CheckpointError, match="must fit q8_0"):
        weights_leg(narrow, narrow, ["q8_0"])


ASKED = """
import json, sys
from unforgotten.audit import open_checkpoint, weights_leg
from unforgotten.audit.kernel.simd import available_paths
pair = [open_checkpoint(path) for path in map(__import__("pathlib").Path, sys.argv[1:3])]
try:
    leg = weights_leg(pair[0], pair[1], ["nf4-b64", "fp8-row"])
    print(json.dumps({"ran": leg.computed, "paths": available_paths()}))
except ValueError as error:
    print(json.dumps({"refused": str(error), "paths": available_paths()}))
"""


EVERY_NIGHT = [
    (machine, asked) for machine in ("own", "haswell", "oldest") for asked in (*VECTOR_PATHS, "scalar", "numpy")
]


@pytest.mark.parametrize(
    ("machine", "asked"),
    [
        *[(machine, "auto") for machine in ("own", "haswell", "oldest")],
        *[
            pytest.param(*each, marks=[] if each in (("own", "neon"), ("haswell", "avx512")) else pytest.mark.nightly)
            for each in EVERY_NIGHT
        ],
    ],
)
def test_a_process_runs_what_it_can_and_refuses_the_rest(machine: str, asked: str, tmp_path: Path) -> None:
    """In a process of its own: LLVM ends the one in which it meets an instruction that is not there."""
    if machine != "own" and llvm.get_process_triple().split("-")[0] != "x86_64":
        pytest.skip("the older processors are those of x86")
    env = os.environ | {VARIABLE: asked, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    if machine != "own":
        env |= {"NUMBA_CPU_FEATURES": "", "NUMBA_CPU_NAME": "x86-64"}
    if machine == "haswell":
        env |= {"NUMBA_CPU_NAME": "haswell"}
    if machine == "haswell" and "avx2" not in available_paths():
        pytest.skip("this processor is older than haswell")
    files = save_pair(tmp_path, (16, 128))
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASKED, *map(str, files)], check=False, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if machine == "oldest":
        assert said["paths"] == ["scalar", "numpy"]
    if asked in said["paths"]:
        assert said["ran"]["path"] == asked
    elif asked == "auto":
        assert said["ran"]["path"] == NUMPY
    else:
        assert f"got '{asked}'" in said["refused"]


MARKS = {
    # what stands in the assembly of each path, whichever machine compiles it
    "avx512": (X86, "skylake-avx512", ("vpermi2pd", "zmm")),
    "avx2": (X86, "haswell", ("vpermps", "vpermd", "ymm")),
    "neon": (ARM, "generic", ("tbl\tv", "tbx\tv", "fmla\tv")),
}


@pytest.mark.parametrize("path", VECTOR_PATHS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["nf4-b64", "fp4-b64", "mxfp4-b32", "nvfp4", "int8-g64", "q4_0"])
def test_every_path_compiles_everywhere(path: str, weights: types.Type, name: str) -> None:
    """The passes over a tile, for a machine that this one need not be: LLVM finds an instruction for all of it."""
    triple, cpu, words = MARKS[path]
    assembly = tile_assembly(format_named(name), weights, path, triple, cpu)
    if name == "nf4-b64" and weights == types.uint16:
        assert not [word for word in words if word not in assembly]
    if path != "avx512":
        assert "zmm" not in assembly

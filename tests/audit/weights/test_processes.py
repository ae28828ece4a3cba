"""A leg that is shared out is the leg, whoever measured it, and whoever was lost on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten.audit import open_checkpoint, weights_leg
from unforgotten.audit.kernel.simd import VARIABLE, available_paths
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.weights.leg import WeightsLeg
from unforgotten.audit.weights.processes import MAX_LOSSES
from unforgotten.verification.chance import rng_for
from unforgotten.verification.lost_workers import deadly

FORMATS = ("nf4-b64", "int4-row", "int8-tensor", "q8_0")
SHAPES = {"a.weight": (64, 256), "b.weight": (40, 128), "c.weight": (600, 4096)}  # the last is two pieces


@pytest.fixture(autouse=True)
def by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work this small is not shared out unless a path is named."""
    monkeypatch.setenv(VARIABLE, available_paths()[0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    rng = rng_for("jobs")
    before: dict[str, Any] = {n: (0.02 * rng.standard_normal(s)).astype(ml_dtypes.bfloat16) for n, s in SHAPES.items()}
    after = {n: (w + 1e-3 * rng.standard_normal(w.shape)).astype(w.dtype) for n, w in before.items()}
    paths = root / "t.safetensors", root / "u.safetensors"
    for path, content in zip(paths, (before, after), strict=True):
        save_file(content, path)
    return paths


@pytest.fixture(scope="module")
def alone(pair: tuple[Path, Path]) -> WeightsLeg:
    target, unlearned = map(open_checkpoint, pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, available_paths()[0])
        return weights_leg(target, unlearned, FORMATS)


def test_processes_measure_the_same(pair: tuple[Path, Path], alone: WeightsLeg) -> None:
    target, unlearned = map(open_checkpoint, pair)
    assert weights_leg(target, unlearned, FORMATS, jobs=2) == alone


def test_progress_is_in_order_whoever_works(pair: tuple[Path, Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    target, unlearned = map(open_checkpoint, pair)

    def progress(name: str, done: int, total: int) -> None:
        seen.append((name, done, total))

    weights_leg(target, unlearned, FORMATS[:1], progress, jobs=2)
    assert seen == [(name, k, 3) for k, name in enumerate(SHAPES)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_lost_worker_costs_nothing_but_time(
    name: str, pair: tuple[Path, Path], alone: WeightsLeg, tmp_path: Path
) -> None:
    target, unlearned = map(open_checkpoint, pair)
    assert weights_leg(deadly(target, name, tmp_path, 1), unlearned, FORMATS, jobs=2) == alone
    assert len(list(tmp_path.iterdir())) == 1


def test_workers_that_are_always_lost_are_an_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    target, unlearned = map(open_checkpoint, pair)
    with pytest.raises(ChildProcessError, match="workers were lost"):
        weights_leg(deadly(target, "a.weight", tmp_path, 99), unlearned, FORMATS[:1], jobs=2)
    assert len(list(tmp_path.iterdir())) == MAX_LOSSES + 1


def test_a_worker_refuses_in_the_same_words(pair: tuple[Path, Path], tmp_path: Path) -> None:
    w = np.ones((4, 64), np.float32)
    w[2, 3] = np.nan
    save_file({"a.weight": w}, tmp_path / "nan.safetensors")
    save_file({"a.weight": np.ones((4, 40), np.float32)}, tmp_path / "short.safetensors")
    for name, words in (
        ("nan", "must be finite, got nan at flat index 131"),
        ("short", "must fit q8_0, got rows must be whole blocks"),
    ):
        file = open_checkpoint(tmp_path / f"{name}.safetensors")
        for jobs in (1, 2):
            with pytest.raises(CheckpointError, match=words):
                weights_leg(file, file, ["q8_0"], jobs=jobs)


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_are_at_least_one(jobs: int, pair: tuple[Path, Path]) -> None:
    target, unlearned = map(open_checkpoint, pair)
    with pytest.raises(ValueError, match=f"jobs must be at least 1, got jobs={jobs}"):
        weights_leg(target, unlearned, FORMATS, jobs=jobs)


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # Ray's own, of its sockets and its settings
def test_ray_measures_the_same_and_survives_a_lost_worker(
    pair: tuple[Path, Path], alone: WeightsLeg, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra ray")
    target, unlearned = map(open_checkpoint, pair)
    assert weights_leg(target, unlearned, FORMATS, ray="local") == alone
    killing = deadly(target, "b.weight", tmp_path, 1)
    assert weights_leg(killing, unlearned, FORMATS, ray="local") == alone
    assert len(list(tmp_path.iterdir())) == 1


COMPILING = """
import sys
from pathlib import Path
from unforgotten.audit import open_checkpoint, weights_leg
if __name__ == "__main__":
    weights_leg(*(open_checkpoint(Path(name)) for name in sys.argv[1:]), ("q4_k",), jobs=2)
"""


@pytest.mark.nightly
def test_what_workers_need_is_compiled_once(tmp_path: Path) -> None:
    """In a format that they are not forked with, from an empty cache: no machine code is put into it twice."""
    rng = rng_for("compiled once")
    for name in "tu":
        content = {k: (0.02 * rng.standard_normal((64, 256))).astype(np.float32) for k in ("a.weight", "b.weight")}
        save_file(content, tmp_path / f"{name}.safetensors")
    script = tmp_path / "compiling.py"
    script.write_text(COMPILING)
    own = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1", VARIABLE: "scalar"}
    command = [sys.executable, "-P", str(script), *(str(tmp_path / f"{name}.safetensors") for name in "tu")]
    said = subprocess.run(command, env=os.environ | own, check=True, capture_output=True, text=True).stdout
    saved = re.findall(r"data saved to '(.*)'", said)
    assert saved, said
    assert len(saved) == len(set(saved)), sorted(path for path in saved if saved.count(path) > 1)

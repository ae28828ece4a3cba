"""The command `bound`: what it prints, what it computes for that, what it does not load, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from unforgotten.theory.calculators import bound as theory
from unforgotten.theory.laws.predict import predict

ASKED = ("--format", "int4-g64", "--std", "0.02", "--lr", "1e-5", "--steps", "500")
LOADED = "import sys; sys.argv = ['unforgotten', *sys.argv[1:]]; import unforgotten.cli as c\ntry: c.main()\nfinally: print(*sys.modules, file=sys.stderr)"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unforgotten.cli", "bound", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answer(*arguments: str) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_prints_dead_zone_gain_cosine_and_flips(dtype: str) -> None:
    done = call(*ASKED, "--dtype", dtype)
    assert done.returncode == 0
    assert done.stderr == ""
    names = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert names == ["steps", "dead zone", "moved", "rms update", "gain", "cosine", "flips"]


def test_bf16_freezes_what_fp32_moves() -> None:
    coarse, fine = answer(*ASKED, "--dtype", "bf16"), answer(*ASKED, "--dtype", "fp32")
    assert coarse["dead_zone"] == 2.0**-8
    assert fine["dead_zone"] is None
    assert coarse["moved"] < 0.2 < fine["moved"] == 1
    assert coarse["gain"] < 0.9 < fine["gain"] < 1.1
    assert coarse["question"]["snr"] is None


def test_nothing_moves_is_said() -> None:
    done = call("--format", "int4-g64", "--std", "1", "--lr", "1e-12", "--steps", "3", "--dtype", "fp16")
    assert "undefined" in done.stdout


@pytest.mark.parametrize(
    "more", [["--dtype", "bf16"], ["--dtype", "fp32"], ["--dtype", "bf16", "--snr", "0.5", "--gain", "0.9"]]
)
def test_it_loads_nothing_heavy(more: list[str]) -> None:
    command = [sys.executable, "-c", LOADED, "bound", *ASKED, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "unforgotten.theory.calculators.bound" in loaded
    assert not {"torch", "jax", "sympy", "z3", "transformers", "scipy.stats", "matplotlib"} & loaded


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["int4-g64", "int4-tensor"])
def test_it_costs_one_prediction(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of steps and of weights; how fast that is, `make bench` says."""
    asked: list[int] = []

    def counted(*arguments: Any, steps: int, **more: Any) -> Any:
        asked.append(steps)
        return predict(*arguments, steps=steps, **more)

    monkeypatch.setattr(theory, "predict", counted)
    theory.bound(theory.Question(name, 0.02, 1e-5, 10**6, dtype=dtype))
    assert asked == [10**6]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--format", "int99"], ["format", "int99"]),
        (["--format", "int4-g64-asym"], ["format", "absmax", "range"]),
        (["--std", "0"], ["scale", "0.0"]),
        (["--lr", "-1"], ["lr", "-1"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--steps", "0"], ["steps", "0"]),
        (["--steps", "many"], ["--steps", "integer"]),
        (["--dtype", "int8"], ["dtype", "int8", "bf16"]),
        (["--density", "cauchy"], ["density", "cauchy", "gaussian"]),
        (["--optimizer", "muon"], ["optimizer", "muon", "adamw"]),
        (["--snr", "0"], ["snr", "0"]),
        (["--gain", "1.5"], ["gain", "1.5"]),
        (["--cosine", "0"], ["cosine", "0"]),
        (["--columns", "1"], ["columns", "1"]),
    ],
)
def test_bad_usage_is_one_line(change: list[str], words: list[str]) -> None:
    done = call(*ASKED, *change)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr

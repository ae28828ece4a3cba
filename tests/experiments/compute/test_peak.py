"""A run's evaluation holds one model: states of the others are read tensor by tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="models need unforgotten[experiments]")

from unforgotten.experiments.compute.settings import DEFAULT, ComputeConfig
from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.saved import load_model, load_tokenizer, save_model
from unforgotten.experiments.models.saved_states import saved_states
from unforgotten.experiments.models.states import LazyState, fill

SCRIPT = Path(__file__).with_name("peak_of_evaluation.py")
HANG_SECONDS = 3600
ALLOWED = 1.6
SETTINGS = ["only_methods=[NPO]", "storages=[fp32]", "formats=[int4-g64]", "corpus.passages=4", "corpus.holdout=4"]
NOTES: dict[str, Any] = {"dtypes": {}, "products": None, "rounding": None, "steps": 1, "stopped": "max_steps"}


def test_states_are_read_when_they_are_asked_for(micro_pair: Path) -> None:
    states = saved_states(micro_pair / "models", "target", DEFAULT)
    assert states.streamed
    for name in ("target", "unlearned", "retrained"):
        state, loaded = states.of(name), load_model(micro_pair / "models" / name).state_dict()
        assert isinstance(state, LazyState)
        assert state.keys() == loaded.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in loaded.items())


def test_a_model_is_measured_in_the_dtype_that_is_asked_for(micro_pair: Path) -> None:
    states = saved_states(micro_pair / "models", "target", ComputeConfig(evaluation_dtype="bfloat16"))
    assert {p.dtype for p in states.model.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in states.of("unlearned").values()} == {torch.float32}
    fill(states.model, states.of("unlearned"))
    name, parameter = next(iter(states.model.named_parameters()))
    assert torch.equal(parameter, states.of("unlearned")[name].bfloat16())


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
def test_the_peak_of_an_evaluation_is_below_1_6_models(micro_pair: Path, tmp_path: Path) -> None:
    """100 M weights, 385 MiB in float32; about 130 MiB of the peak are logits, activations and pages of files, whatever the size."""
    tokenizer = load_tokenizer(micro_pair / "models/target")
    for size, layers, width, feed_forward in (("small", 1, 64, 64), ("large", 24, 512, 2048)):
        base = BaseConfig(vocabulary=400, width=width, feed_forward=feed_forward, layers=layers, heads=4, positions=512)
        for seed, name in enumerate(("base", "target", "retrained", "unlearned-NPO-fp32")):
            dtype = torch.bfloat16 if name in ("target", "retrained") else torch.float32
            save_model(tmp_path / size / "models" / name, TINY.model(base, seed=seed), tokenizer, dtype, NOTES)
    folders = [str(tmp_path / size) for size in ("small", "large")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *folders, *SETTINGS],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    copy, growth = map(int, done.stdout.split())
    assert copy > 300 * 2**20
    assert growth <= ALLOWED * copy

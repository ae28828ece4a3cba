"""What a meter takes for the same state: weights, and nothing that computes more than its weights say."""

from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.meter import Meter, fingerprint
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.kept import Kept
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import Shell, state_of

MICRO = Path(__file__).parents[2] / "micro.yaml"


def test_dynamic_layers_are_not_taken_for_the_weights_that_they_have(micro_pair: Path, tmp_path: Path) -> None:
    """Both have the weights of int8-row; with dynamic layers every loss is another, known weights or not."""
    folder = micro_pair / "models/target"
    tokenizer, config = load_tokenizer(folder), load_config(str(MICRO))
    corpus, _ = prepare_corpus(config.corpus, config.seed, tmp_path / "corpus")
    shell = Shell(load_model(folder), tokenizer)
    state = state_of(load_model(folder))
    plain, dynamic = (shell.quantized(state, name) for name in ("int8-row", "dynamic:int8-row"))
    assert all(torch.equal(plain[name], dynamic[name]) for name in plain)
    assert fingerprint(plain) is not None
    assert fingerprint(dynamic) is None
    meter = Meter(shell, make_probes(corpus, tokenizer, config), config)
    expected = [meter.measure(s)["forget_loss"].value for s in (plain, dynamic)]
    keeping = dataclasses.replace(meter, known={}, kept=Kept(tmp_path / "kept"))
    assert [keeping.measure(s)["forget_loss"].value for s in (plain, dynamic)] == expected
    assert expected[0] != expected[1]


def test_a_fingerprint_is_that_of_names_and_bytes_in_order_whatever_the_shapes_and_strides() -> None:
    state = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(3.0),
        "none": torch.zeros(0, 4),
        "every other": torch.arange(8.0)[::2],
    }
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + np.ascontiguousarray(state[name].numpy()).tobytes())
    assert fingerprint(state) == digest.digest()
    assert fingerprint({**state, "scalar": torch.tensor(4.0)}) != digest.digest()


def test_a_fingerprint_copies_no_weight() -> None:
    state = {"embedding": torch.zeros(1000, 1000)}
    tracemalloc.start()
    try:
        fingerprint(state)
        assert tracemalloc.get_traced_memory()[1] < state["embedding"].nbytes / 10
    finally:
        tracemalloc.stop()

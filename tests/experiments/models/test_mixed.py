"""A mix of a whole model, as the audit measures it and as the models run with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need unforgotten[experiments]")

from unforgotten.audit.mixes.mix import formats_of
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.open import open_pair
from unforgotten.audit.sources.pairing import pair
from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.bases.scratch import Scratch
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip

NAME = "gguf:Q4_K_M"
EFFECT_ROUNDING = 10 * 100 * 2.0**-53  # ten sums of numbers up to 100 in float64, an item


def test_a_tied_model_runs_with_what_the_audit_measures(micro_pair: Path) -> None:
    folder = micro_pair / "models/target"
    model, target = load_model(folder), open_checkpoint(folder)
    shapes = {name: info.shape for name, info in target.tensors.items()}
    measured = {name: fmt.name for name, fmt in formats_of(NAME, shapes, ()).items()}
    shell = Shell(model, None)
    assert shell.mixed(NAME) == measured
    state = state_of(model)
    found = shell.quantized(state, NAME)
    for name in state:
        w = state[name].numpy()
        expected = round_trip(w, format_named(measured[name])) if name in measured else w
        if name != "lm_head.weight":  # tied: a model takes the embedding for it
            assert np.array_equal(found[name].numpy(), expected), name
    assert set(shell.touched(NAME)) == measured.keys()
    assert {"model.embed_tokens.weight"} == measured.keys() - set(shell.touched("int4-g64"))


def test_experts_in_one_tensor_have_the_formats_of_their_files(tmp_path: Path) -> None:
    base = BASES["moe"]
    assert isinstance(base, Scratch)
    model = base.model(BaseConfig(layers=2, experts=3), 0)
    shell, state = Shell(model, None), state_of(model)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    before, after = open_pair(tmp_path / "a", tmp_path / "b")
    names = pair(before, after)
    shapes = {name: before.tensors[name].shape for name in (*names.quantized, *names.kept)}
    measured = formats_of(NAME, shapes, names.quantized)
    mixed = shell.mixed(NAME)
    for layer in range(2):
        for expert in range(3):  # the file has Mixtral's names
            in_file = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            held = f"model.layers.{layer}.mlp.experts"
            assert mixed[f"{held}.down_proj[{expert}]"] == measured[f"{in_file}.w2.weight"].name
            assert mixed[f"{held}.gate_up_proj[{expert}]"] == measured[f"{in_file}.w1.weight"].name
    assert len(mixed) == len(measured) - 2 * 3  # w1 and w3 are one
    down = "model.layers.1.mlp.experts.down_proj"
    assert mixed[f"{down}[2]"] == "q8_0"
    found = shell.quantized(state, NAME)
    assert found.keys() == state.keys()
    for i, w in enumerate(state[down].numpy()):
        assert np.array_equal(found[down][i].numpy(), round_trip(w, format_named("q8_0")))
    assert down in shell.touched(NAME)


def test_a_mix_has_a_behaviour(micro_pair: Path) -> None:
    target, unlearned = (micro_pair / "models" / name for name in ("target", "unlearned"))
    leg = behaviour_leg(target, unlearned, [NAME], micro_pair / "corpus", items=2, decompose=True)
    (row,) = leg["formats"]
    assert row["format"] == NAME
    (loss,) = [e for e in row["effects"] if e["metric"] == "forget_loss"]
    assert loss["lost"]["value"] == pytest.approx(
        loss["gating"]["value"] + loss["base_shift"]["value"], abs=EFFECT_ROUNDING
    )
    assert loss["lost"]["value"] != 0

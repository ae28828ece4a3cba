"""What is known of the training: from options and from files beside the checkpoint; and what follows from it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import AuditResult, audit_pair
from unforgotten.audit.findings.recipe import GivenRecipe, Recipe, missing_parts, read_recipe
from unforgotten.audit.outputs.model_card import render_model_card

NAME = "model.layers.0.mlp.up_proj.weight"
FORMATS = ["int4-g64", "int8-row"]
WHOLE = {"lr": 1e-5, "steps": 40, "optimizer": "adamw", "trained_in": "bf16"}


def sgd_saved_as_bf16() -> tuple[NDArray[Any], NDArray[Any]]:
    """One long float32 step along a Gaussian gradient, rounded to bfloat16 once at the end: large weights stand still."""
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (256, 256)).astype(ml_dtypes.bfloat16).astype(np.float32)
    moved = w + rng.normal(0, 4e-5, w.shape).clip(-6e-5, 6e-5).astype(np.float32)
    return w, moved.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name, w in zip(("t", "u"), sgd_saved_as_bf16(), strict=True):
        (tmp_path / name).mkdir()
        save_file({NAME: w.astype(ml_dtypes.bfloat16)}, tmp_path / name / "model.safetensors")
    return tmp_path / "t", tmp_path / "u"


def audited(pair: tuple[Path, Path], **given: Any) -> AuditResult:
    return audit_pair(*pair, FORMATS, recipe=read_recipe(pair[1], GivenRecipe(**given)))


def test_files_do_not_tell_how_a_model_was_trained(pair: tuple[Path, Path]) -> None:
    result = audited(pair)
    assert result["storage"]["dead_zone"]["detected"] is True
    (zone,) = [row for row in result["findings"] if row["id"] == "dead-zone"]
    assert zone["severity"] == "note"
    said = "trained in bf16, or saved in bf16 after fp32: the files cannot tell"
    assert said in zone["sentence"]
    assert "lr =" not in zone["sentence"]
    assert said not in render_model_card(result)
    assert result["recipe"] is None
    for row in result["prediction"]:
        assert (row["predicted_gain"], row["smallest_lr"], row["inputs"]) == (None, None, None)
        assert row["note"] is not None
        assert row["note"].startswith("needs --lr and --steps and --optimizer and --trained-in")
    assert not [row for row in result["findings"] if row["id"] == "advice" and row["effect"] is not None]


def test_sgd_has_no_theory_and_no_advice_on_lr(pair: tuple[Path, Path]) -> None:
    result = audited(pair, lr=0.1, steps=9, optimizer="sgd", trained_in="fp32")
    assert {row["predicted_gain"] for row in result["prediction"]} == {None}
    assert all("no law for sgd" in (row["note"] or "") for row in result["prediction"])
    (zone,) = [row for row in result["findings"] if row["id"] == "dead-zone"]
    assert "saved in bf16 after fp32" in zone["sentence"]


def test_a_theory_that_disagrees_with_the_measurement_is_a_finding(pair: tuple[Path, Path]) -> None:
    """Nine steps of 1e-5 in bf16, about what once was read from such files: the theory expects an amplified update."""
    wrong = audited(pair, lr=1e-5, steps=9, optimizer="adamw", trained_in="bf16")
    found = {row["format"]: row for row in wrong["findings"] if row["id"] == "theory-disagrees"}
    for row in wrong["prediction"]:
        assert row["predicted_gain"] is not None
        assert row["measured_gain"] is not None
        far = abs(row["predicted_gain"] - row["measured_gain"]) > 0.25 + 2 * (row["measured_stderr"] or 0.0)
        assert far == (row["format"] in found)
    assert "int4-g64" in found
    assert found["int4-g64"]["severity"] == "warning"
    assert "the measurement counts" in found["int4-g64"]["sentence"]
    assert found["int4-g64"]["sentence"] in wrong["verdict"]["reasons"]


def test_a_recipe_is_read_beside_the_checkpoint_and_options_go_first(pair: tuple[Path, Path]) -> None:
    (pair[1] / "unforgotten.json").write_text(json.dumps(WHOLE))
    assert read_recipe(pair[1]) == {**WHOLE, "source": "unforgotten.json"}
    assert read_recipe(pair[1] / "model.safetensors") == {**WHOLE, "source": "unforgotten.json"}
    given = read_recipe(pair[1], GivenRecipe(lr=3e-4))
    assert given == {**WHOLE, "lr": 3e-4, "source": "unforgotten.json and command line"}
    assert missing_parts(given) == []
    result = audited(pair)
    assert result["recipe"] == {**WHOLE, "source": "unforgotten.json"}
    assert result["prediction"][0]["inputs"] is not None
    assert result["prediction"][0]["inputs"]["lr_source"] == "recipe"


@pytest.mark.parametrize(
    ("dtypes", "rounding", "expected"),
    [
        ({"parameters": "bfloat16", "master": "none"}, "nearest", "bf16"),
        ({"parameters": "bfloat16", "master": "none"}, "stochastic", None),
        ({"parameters": "bfloat16", "master": "float32"}, None, "fp32"),
        ({"parameters": "float32", "master": "none"}, None, "fp32"),
        ({}, None, None),
    ],
)
def test_the_notes_of_a_run_are_a_recipe(
    dtypes: dict[str, str], rounding: str | None, expected: str | None, pair: tuple[Path, Path]
) -> None:
    notes = {"lr": 1e-4, "steps": 4, "alpha": 1.0, "stopped": "max_steps", "dtypes": dtypes, "rounding": rounding}
    (pair[1] / "unforgotten.json").write_text(json.dumps(notes))
    found = read_recipe(pair[1])
    assert found == Recipe(lr=1e-4, steps=4, optimizer="adamw", trained_in=expected, source="unforgotten.json")  # type: ignore[typeddict-item]
    (pair[1] / "unforgotten.json").write_text(json.dumps({**notes, "lr": None, "steps": 0}))
    less = read_recipe(pair[1])
    assert less is not None
    assert (less["lr"], less["steps"]) == (None, None)


@pytest.mark.parametrize(("optimizer", "expected"), [("sign", "sign"), ("sgd", "sgd"), (None, None), ("lion", None)])
def test_a_run_that_names_its_optimizer_is_not_taken_for_adamw(
    optimizer: str | None, expected: str | None, pair: tuple[Path, Path]
) -> None:
    """Null is a method that masks or moves weights otherwise: no law of an optimizer says where they went."""
    notes = {"lr": 1e-4, "steps": 4, "dtypes": {"parameters": "float32", "master": "float32"}, "optimizer": optimizer}
    (pair[1] / "unforgotten.json").write_text(json.dumps(notes))
    found = read_recipe(pair[1])
    assert found is not None
    assert found["optimizer"] == expected


def test_a_trainers_state_tells_lr_and_steps_and_no_more(pair: tuple[Path, Path]) -> None:
    log = [{"learning_rate": 1e-6, "step": 1}, {"learning_rate": 1e-5, "step": 2}, {"loss": 1.0}]
    (pair[1] / "trainer_state.json").write_text(json.dumps({"global_step": 7, "log_history": log}))
    expected = Recipe(lr=1e-5, steps=7, optimizer=None, trained_in=None, source="trainer_state.json")
    assert read_recipe(pair[1]) == expected
    assert missing_parts(expected) == ["--optimizer", "--trained-in"]
    assert audited(pair)["prediction"][0]["note"] == (
        "needs --optimizer and --trained-in: what a training did is not in its weights"
    )


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{",
        '{"global_step": true, "log_history": 3}',
        '{"global_step": -1, "log_history": [null, 7, {"learning_rate": NaN}, {"learning_rate": "1"}]}',
        '{"global_step": 1e400, "log_history": {"learning_rate": 1}}',
        "[" * 10_000,
    ],
)
def test_a_state_that_says_nothing_is_no_recipe(state: str, pair: tuple[Path, Path]) -> None:
    (pair[1] / "trainer_state.json").write_text(state)
    assert read_recipe(pair[1]) is None


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("lr", 0),
        ("lr", float("inf")),
        ("lr", True),
        ("steps", 0),
        ("steps", 1.5),
        ("optimizer", "adam"),
        ("trained_in", "bf"),
    ],
)
def test_a_part_that_breaks_its_rule_is_refused_by_name(part: str, value: Any, pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=f"--{part.replace('_', '-')} must be"):
        read_recipe(pair[1], GivenRecipe(**{part: value}))
    (pair[1] / "unforgotten.json").write_text(json.dumps({part: value}))
    with pytest.raises(ValueError, match=r"unforgotten\.json"):
        read_recipe(pair[1])

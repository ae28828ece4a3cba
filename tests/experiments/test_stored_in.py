"""A target that was stored in 4 bits before it was unlearned: `models.stored_in`."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.prepared_models import prepare_models

MICRO = str(Path(__file__).parents[1] / "micro.yaml")
BF16 = 2.0**-8
"""Largest relative error of rounding to bfloat16, as which targets are saved."""
OFF_GRID = 0.7 / 14
"""Half a step is a fourteenth of the largest weight of a block, which is the row's largest in some: most of it."""


def prepared(folder: Path, **given: str) -> dict[str, Shell]:
    """The target and the retrained model of a run, by name."""
    config: RunConfig = load_config(MICRO, seed=0, settings={f"models.{name}": value for name, value in given.items()})
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    prepare_models(config, corpus, folder / "models", SILENT)
    names = ["target"] if "target" in given else ["target", "retrained"]
    return {name: Shell(load_model(folder / "models" / name), None) for name in names}


def moved_by(shell: Shell, format_name: str) -> float:
    """The largest move of a weight by a format, as a share of the largest weight of its row."""
    state = state_of(shell.model)
    stored = shell.quantized(state, format_name)
    rows = (((stored[n] - state[n]).abs().amax(-1) / state[n].abs().amax(-1)).max() for n in shell.names)
    return float(max(rows))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Shell]]:
    folder = tmp_path_factory.mktemp("stored")
    return folder, prepared(folder, stored_in="int4-g64")


def test_the_target_lies_on_the_grid_of_its_format_up_to_the_dtype_of_its_checkpoint(
    stored: tuple[Path, dict[str, Shell]],
) -> None:
    assert moved_by(stored[1]["target"], "int4-g64") <= 2 * BF16  # of a value, and of the scale that is fitted anew


def test_the_retrained_model_was_never_quantized(stored: tuple[Path, dict[str, Shell]]) -> None:
    assert moved_by(stored[1]["retrained"], "int4-g64") > OFF_GRID


def test_a_target_that_is_given_is_stored_too(stored: tuple[Path, dict[str, Shell]], tmp_path: Path) -> None:
    trained = stored[0] / "models/retrained"
    given = prepared(tmp_path, target=str(trained), stored_in="int4-g64")["target"]
    assert moved_by(given, "int4-g64") <= 2 * BF16


@pytest.mark.parametrize("name", ["gptq:int4-g64", "int4-g0", "none"])
def test_a_format_that_has_no_values_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"models\.stored_in: "):
        load_config(MICRO, seed=0, settings={"models.stored_in": name})

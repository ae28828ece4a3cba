"""Every study stands in its four places, and bad requests end in one line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from unforgotten.experiments.studies.registry import load_study, study_names, study_questions
from unforgotten.experiments.studies.runs import RunsSettings, planned_runs
from unforgotten.reports.studies.registry import render, study_modules

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "reports" / "published"
MICRO = str(ROOT / "tests" / "micro.yaml")
NAMES = study_names()


def test_the_studies_are_those_that_have_pages() -> None:
    own = {name for name in NAMES if not isinstance(load_study(name).settings, RunsSettings)}
    assert own == set(study_modules())
    assert set(study_questions()) == set(NAMES)
    assert all(question.endswith("?") for question in study_questions().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_study_stands_in_its_four_places(name: str) -> None:
    study = load_study(name)
    if not isinstance(study.settings, RunsSettings):
        assert find_spec(f"unforgotten.experiments.studies.{name.replace('-', '_')}")
    assert study.stages > 0
    for file, text in render(name, PUBLISHED / name).items():
        assert (PUBLISHED / name / file).read_text(encoding="utf-8") == text


def test_an_unknown_name_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^study must be one of architectures, audit-cost, .*, got 'cost'$"):
        load_study("cost")


@pytest.mark.parametrize(
    ("override", "words"),
    [("rounds=0", "audit-cost: rounds: .* got rounds=0"), ("round=2", "audit-cost: round: .* got round=2")],
)
def test_a_setting_that_breaks_a_rule_is_named(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_study("audit-cost", [override])


def test_runs_are_every_combination_with_their_settings() -> None:
    settings = RunsSettings(
        profile=MICRO,
        seeds=(0, 7),
        set={"only_methods": ["GA"]},
        vary={
            "arm": {"fp32": {"storages": ["fp32"]}, "bf16": {"storages": ["bf16"]}},
            "lr": {"1e-3": {"unlearning.lr.bf16": 1e-3}},
        },
    )
    runs = dict(planned_runs(settings))
    assert list(runs) == ["fp32-1e-3-seed0", "fp32-1e-3-seed7", "bf16-1e-3-seed0", "bf16-1e-3-seed7"]
    last = runs["bf16-1e-3-seed7"]
    assert (last.seed, last.methods, last.storages, last.unlearning.lr["bf16"]) == (7, ("GA",), ("bf16",), 1e-3)


def test_a_level_that_is_no_folder_name_is_refused() -> None:
    with pytest.raises(ValueError, match="a level must be letters"):
        RunsSettings(profile=MICRO, vary={"lr": {"../x": {}}})


def test_a_level_may_have_seeds_of_its_own() -> None:
    vary: dict[str, Any] = {"arm": {"fp32": {"storages": ["fp32"]}, "bf16": {"storages": ["bf16"]}}}
    settings = RunsSettings(profile=MICRO, seeds=(0, 7), seeds_of={"bf16": (7,)}, vary=vary)
    assert [name for name, _ in planned_runs(settings)] == ["fp32-seed0", "fp32-seed7", "bf16-seed7"]
    assert "seeds_of" not in RunsSettings(profile=MICRO, seeds=(0, 7), vary=vary).model_dump(mode="json")
    for wrong in ({"fp16": (0,)}, {"bf16": ()}):
        with pytest.raises(ValueError, match="seeds_of must have seeds of levels of vary, got "):
            RunsSettings(profile=MICRO, seeds_of=wrong, vary=vary)

"""Published runs of studies are those that their files ask for, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from unforgotten.experiments.studies.runs import RunsSettings, planned_runs

STUDIES = Path(__file__).parents[3] / "experiments/studies"
PUBLISHED = Path(__file__).parents[3] / "reports/published"
ASKED = {path.stem.replace("_", "-"): yaml.safe_load(path.read_text()) for path in sorted(STUDIES.glob("*.yaml"))}
OF_RUNS = {name: study for name, study in ASKED.items() if "runs" in study}


@pytest.mark.parametrize("name", OF_RUNS)
def test_the_runs_of_a_study_have_the_configurations_that_its_file_asks_for(name: str) -> None:
    planned = dict(planned_runs(RunsSettings.model_validate(OF_RUNS[name]["runs"])))
    found = {path.parent.name: path.read_text() for path in (PUBLISHED / name).glob("*/config.json")}
    assert found == {run: config.model_dump_json(indent=1) for run, config in planned.items()}


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_study_was_measured_for_the_question_and_the_predictions_of_its_file(name: str) -> None:
    measured = json.loads((PUBLISHED / name / "study.json").read_text())
    assert measured["question"] == OF_RUNS[name]["question"]
    assert measured["settings"] == RunsSettings.model_validate(OF_RUNS[name]["runs"]).model_dump(mode="json")

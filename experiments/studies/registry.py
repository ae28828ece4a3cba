"""The studies by name, found by the YAML files beside this one.

study = load_study("audit-cost", ["rounds=1"])
study.measure(Path("runs/audit-cost"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unforgotten.audit.progress.stages import SILENT, Progress
from unforgotten.experiments.load_config import complaint, read_tree, set_dotted
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import write_json

PACKAGE = "unforgotten.experiments.studies"
STUDY_FILE = "study.json"
SETTINGS = ("settings", "runs")


@dataclass(frozen=True)
class LoadedStudy:
    """A study with its settings.

    Attributes:
        name: name of the study.
        question: question that it asks.
        settings: settings that the rows are measured with.
        study: function that measures them.
    """

    name: str
    question: str
    settings: Section
    study: Study

    @property
    def stages(self) -> int:
        """Number of stages of which `measure` tells the progress."""
        return self.study.stages(self.settings)

    def measure(self, folder: Path, progress: Progress = SILENT) -> None:
        """Write the rows into `folder`, and beside them the question and the settings, in STUDY_FILE."""
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"name": self.name, "question": self.question, "settings": self.settings.model_dump(mode="json")}
        write_json(folder / STUDY_FILE, asked)
        self.study.measure(self.settings, folder, progress)


def study_questions() -> Mapping[str, str]:
    """Return what each study asks, by name. Nothing heavy is loaded."""
    return {name: str(_tree(path, name).get("question", "")) for name, path in _files().items()}


def study_names() -> list[str]:
    """Return the names of the YAML files, which are the studies."""
    return list(_files())


def load_study(name: str, overrides: Iterable[str] = ()) -> LoadedStudy:
    """Return a study, with `a.b=value` overrides of its settings.

    Raises:
        ValueError: there is none of this name, or a setting breaks a rule; one line that names it.
    """
    if name not in _files():
        raise ValueError(f"study must be one of {', '.join(study_names())}, got {name!r}")
    tree = _tree(_files()[name], name)
    part = next((key for key in SETTINGS if key in tree), None)
    if part is None or set(tree) != {"question", part}:
        raise ValueError(f"{name}: must have the keys question and settings, or question and runs, got {list(tree)}")
    given: dict[str, Any] = tree[part] or {}
    for override in overrides:
        set_dotted(given, override)
    study = _study_of(name, part)
    try:
        settings = study.settings.model_validate(given)
    except ValidationError as error:
        raise ValueError(complaint(name, error)) from None
    return LoadedStudy(name, tree["question"], settings, study)


def _files() -> Mapping[str, Path]:
    folders = map(Path, import_module(PACKAGE).__path__)
    return {path.stem.replace("_", "-"): path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _tree(path: Path, name: str) -> dict[str, Any]:
    return read_tree(path.read_text(encoding="utf-8"), name)


def _study_of(name: str, part: str) -> Study:
    module = f"{PACKAGE}.{'runs' if part == 'runs' else name.replace('-', '_')}"
    if find_spec(module) is None:
        raise ValueError(f"{name}: a study with settings must have a module, {module} is missing")
    study: Study = import_module(module).STUDY
    return study

"""What a study is: a question that the project puts to its own code, published whatever the answer.

A study has one name in four places, with "_" for "-" in the names of modules:

    experiments/studies/dead_zone.yaml    question, and settings
    experiments/studies/dead_zone.py      STUDY: type of the settings, and what measures rows with them
    reports/studies/dead_zone.py          files made of the rows
    reports/published/dead-zone/          rows and these files

`unforgotten study dead-zone` measures and renders, `--render` renders alone. One that asks for runs and nothing else needs no
module: its YAML has `runs` in place of `settings`, and `runs.py` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.section import Section


@dataclass(frozen=True)
class Study:
    """How the rows of a study are measured.

    Attributes:
        settings: type of its settings.
        stages: number of stages of which `measure` tells the progress, given settings of that type.
        measure: function that writes the rows into the folder, given settings of that type; where rows are there, it
            goes on or says why it cannot.
    """

    settings: type[Section]
    stages: Callable[[Any], int]
    measure: Callable[[Any, Path, Progress], None]

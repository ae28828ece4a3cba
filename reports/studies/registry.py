"""The files that are made of a study's rows, by the name of the study; found in the modules beside this one.

A module has the name of its study, with "_" for "-", and one function:

    def render(folder: Path) -> Mapping[str, str]

In goes the folder with the study's rows, such as `reports/published/audit-cost`; out come the texts of the files made of
them, by file name. It writes nothing, and the same rows give the same texts. The module `runs`, where there is one, is
that of all studies which only ask for runs: they have no module of their own, and their folder holds STUDY_FILE.

    write_study("audit-cost", Path("reports/published/audit-cost"))

`python -m unforgotten.reports.studies.registry reports/published` does so for every study that has a folder there.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from unforgotten.records.files import write_text

PACKAGE = "unforgotten.reports.studies"
STUDY_FILE = "study.json"
RUNS = "runs"
THIS = "registry"
Render = Callable[[Path], Mapping[str, str]]


def study_modules() -> Mapping[str, Render]:
    """Return the function `render` of every study that has a module of its own, by the name of the study."""
    return {name: make for name, make in _found().items() if name != RUNS}


def render(name: str, folder: Path) -> Mapping[str, str]:
    """Return the texts of the files that are made of a study's rows, by file name.

    Args:
        name: name of the study, such as "audit-cost".
        folder: folder with its rows.

    Raises:
        ValueError: there is no study of this name.
    """
    of_runs = _found().get(RUNS) if (folder / STUDY_FILE).is_file() else None
    make = study_modules().get(name, of_runs)
    if make is None:
        raise ValueError(f"study must be one of {', '.join(study_modules())}, got {name!r}")
    return make(folder)


def write_study(name: str, folder: Path) -> list[Path]:
    """Write the files that are made of a study's rows beside them, each in one step, and return their paths.

    Raises:
        ValueError: as `render`.
    """
    texts = render(name, folder)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def write_published(published: Path) -> list[Path]:
    """Write the files of every study that has a folder in `published`, and return their paths."""
    folders = [f for f in sorted(published.iterdir()) if f.name in study_modules() or (f / STUDY_FILE).is_file()]
    return [path for folder in folders for path in write_study(folder.name, folder)]


def _found() -> Mapping[str, Render]:
    names = [module.name for module in pkgutil.iter_modules(import_module(PACKAGE).__path__)]
    return {name.replace("_", "-"): import_module(f"{PACKAGE}.{name}").render for name in sorted(names) if name != THIS}


if __name__ == "__main__":
    print(*write_published(Path(sys.argv[1])), sep="\n")

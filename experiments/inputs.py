"""The files that a run reads from elsewhere, held to those that it began with.

`inputs.json` in the folder of a run has the SHA-256 of each: of a text what was read; of a model that is given also size and
dates of the file, so that only a file of other dates is read again to be compared. A run without it, begun by an older version,
goes on, and is held to what it reads from then on.

    corpus, origin = claim_inputs(config, Path("runs/tiny-seed0"))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.layout import noted
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.models.bases.given import SETTINGS, WEIGHTS
from unforgotten.experiments.prepared_models import HUB
from unforgotten.records.files import write_json

INPUTS = "inputs.json"


class Noted(TypedDict):
    """A file of a model: SHA-256, bytes, and when it was modified and changed, in nanoseconds."""

    sha256: str
    size: int
    modified: int
    changed: int


class Inputs(TypedDict, total=False):
    """What a run read: texts and files of models, by their paths; those in its own folder from there."""

    texts: dict[str, str]
    models: dict[str, Noted]


class _Source(NamedTuple):
    """Directory of a model or tokenizer that is given.

    Attributes:
        place: directory.
        patterns: patterns of the files that are read.
        taken: whether the run has all that it takes from there, and reads it no more.
    """

    place: Path
    patterns: tuple[str, ...]
    taken: bool


def claim_inputs(config: RunConfig, folder: Path) -> tuple[Corpus, str]:
    """Return the corpus of a run and its origin; note the files that the run reads, or hold them to those noted before.

    Raises:
        ValueError: the data is not there or not in its layout, or a file is not the one that the run began with.
    """
    path = folder / INPUTS
    before, (corpus, origin, texts) = _before(path), _read(config, folder)
    _hold(path, before.get("texts", texts), texts)
    known = before.get("models", {})
    models = _models(config, folder, known)
    _hold(path, _sums(known if "models" in before else models), _sums(models))
    now = Inputs(texts=texts, models=models)
    if now != before:
        write_json(path, now)
    return corpus, origin


def corpus_of_run(config: RunConfig, folder: Path) -> Corpus:
    """Return the corpus of a run that is there.

    Raises:
        ValueError: as `claim_inputs`, but for files of models.
    """
    path = folder / INPUTS
    corpus, _, texts = _read(config, folder)
    _hold(path, _before(path).get("texts", texts), texts)
    return corpus


def _before(path: Path) -> Inputs:
    found: Inputs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else Inputs()
    return found


def _hold(record: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name in (*before, *(name for name in now if name not in before)):
        if before.get(name) != now.get(name):
            got = "none" if name not in now else "one that it did not read" if name not in before else "another"
            raise ValueError(
                f"{name}: must be the file that the run began with, by its SHA-256 in {record}, got {got}; undo that, "
                "or begin another run"
            )


def _read(config: RunConfig, folder: Path) -> tuple[Corpus, str, dict[str, str]]:
    """Return the corpus, its origin and the SHA-256 of the texts that the run reads.

    Of a data set that reads its directory by other functions than those of `layout.py`, all files count.
    """
    with noted() as notes:
        corpus, origin = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    given = config.corpus.path
    if given is not None and not any(path.is_relative_to(given) for path in notes):
        notes |= _sums_of(_below(given))
    if config.evaluation.harness.path is not None:
        notes |= _sums_of(_below(config.evaluation.harness.path))
    return corpus, origin, {_name(path, folder): notes[path] for path in sorted(notes)}


def _name(path: Path, folder: Path) -> str:
    """Return the name of a file in the record: a run may be moved, so what is in its folder is named from there."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _below(place: Path) -> Iterator[Path]:
    """Yield the files of a directory and of those in it, or the file."""
    if place.is_file():
        yield place
    for path in place.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _sums_of(files: Iterable[Path]) -> dict[Path, str]:
    return {path: _sha256(path) for path in files}


def _sources(config: RunConfig, folder: Path) -> Iterator[_Source]:
    given = {"target": config.models.target, "retrained": config.models.retrained}
    made = {name: (folder / "models" / name).exists() for name in ("base", *given)}
    for name, source in given.items():
        if source is not None and not source.startswith(HUB):
            yield _Source(Path(source), (*SETTINGS, *WEIGHTS), made[name])
    tokenizer = config.models.tokenizer
    if tokenizer is not None and not tokenizer.startswith(HUB):
        taken = all(made[name] for name, source in given.items() if source is not None)
        yield _Source(Path(tokenizer), SETTINGS, taken)
    if config.base.kind == "directory" and config.base.path is not None and config.models.target is None:
        yield _Source(config.base.path, (*SETTINGS, *WEIGHTS), made["base"])


def _models(config: RunConfig, folder: Path, before: Mapping[str, Noted]) -> dict[str, Noted]:
    """Return the files of models that are given; one that is gone stays noted where the run reads it no more."""
    found: dict[str, Noted] = {}
    for place, patterns, taken in _sources(config, folder):
        there = sorted({path for pattern in patterns for path in place.glob(pattern) if path.is_file()})
        if taken:
            found |= {name: file for name, file in before.items() if Path(name).parent == place}
        found |= {str(path): _noted(path, before.get(str(path))) for path in there}
    return found


def _noted(path: Path, before: Noted | None) -> Noted:
    """Return what is noted of a file, which is read where its size or dates are not those noted before."""
    stat = path.stat()
    size, modified, changed = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    if before is not None and (before["size"], before["modified"], before["changed"]) == (size, modified, changed):
        return before
    return Noted(sha256=_sha256(path), size=size, modified=modified, changed=changed)


def _sums(models: Mapping[str, Noted]) -> dict[str, str]:
    return {name: file["sha256"] for name, file in models.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

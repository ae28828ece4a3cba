"""What is compared: `audit.json` and `judged.json`, read into one shape.

read_compared([Path("audits/npo"), Path("audits/ga/audit.json"), Path("evals/judged.json")])[0].name  # "npo"
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unforgotten.audit.deployed.told import Deployed, deployed_label
from unforgotten.audit.judged.judge import JSON_FILE as JUDGED_FILE
from unforgotten.audit.judged.judge import SCHEMA as JUDGED_SCHEMA
from unforgotten.audit.outputs.result import JSON_FILE, SCHEMA
from unforgotten.audit.outputs.result_rows import FormatRow
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg
from unforgotten.audit.verdict.rule import Word

KNOWN_FILES = (JSON_FILE, JUDGED_FILE)


class Compared(NamedTuple):
    """One audit, or one judged evaluation, which has no weights.

    Attributes:
        name: name in the table: that of its folder, or of its file where that is not called as the commands call it.
        source: file that it was read from.
        target: SHA-256 of the target, or the file of its results where nothing else is known of it.
        weights: rows of the weights, on the grid of deployment.
        output, behaviour: legs that measured models; None where they were not measured.
        overall: word of the verdict.
        deployed: the two models as they were really quantized; None where they were not given.
    """

    name: str
    source: Path
    target: str
    weights: list[FormatRow]
    output: OutputLeg | None
    behaviour: BehaviourLeg | None
    overall: Word
    deployed: Deployed | None = None

    @property
    def formats(self) -> list[str]:
        """Names of all formats that something is known of, those of the weights first."""
        legs: list[Any] = [leg for leg in (self.behaviour, self.output) if leg is not None]
        measured = [found["format"] for leg in legs for found in leg["formats"]]
        real = [] if self.deployed is None else [deployed_label(self.deployed)]
        return list(dict.fromkeys([*(row["format"] for row in self.weights), *measured, *real]))


def read_compared(paths: Sequence[Path]) -> list[Compared]:
    """Read audits, in the order given.

    Raises:
        ValueError: none or one twice is given, or a path is neither an audit nor a judged evaluation; one line.
    """
    if not paths:
        raise ValueError("AUDIT must be given at least once, got none")
    found = [_read(_file_of(path)) for path in paths]
    first: dict[Path, Path] = {}
    for one, path in zip(found, paths, strict=True):
        other = first.setdefault(one.source.resolve(), path)
        if other is not path:
            raise ValueError(f"AUDIT must name each audit once, got {other} and {path}")
    names = Counter(one.name for one in found)
    return [
        one if names[one.name] == 1 else one._replace(name=str(path)) for one, path in zip(found, paths, strict=True)
    ]


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in KNOWN_FILES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path}: must hold {' or '.join(KNOWN_FILES)}, got a folder without")


def _read(file: Path) -> Compared:
    try:
        read = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        read = None
    result: dict[str, Any] = read if isinstance(read, dict) else {}
    schema = result.get("schema")
    if schema not in (SCHEMA, JUDGED_SCHEMA):
        rule = "must be what unforgotten audit or judge wrote"
        raise ValueError(f"{file}: {rule}, {SCHEMA} or {JUDGED_SCHEMA}, got {schema!r}")
    name = file.absolute().parent.name if file.name in KNOWN_FILES else file.stem
    try:
        return _of_audit(name, file, result) if schema == SCHEMA else _of_judged(name, file, result)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: must hold all of {schema}, got none of {error}") from None


def _of_audit(name: str, file: Path, result: dict[str, Any]) -> Compared:
    rows = [row for row in result["formats"] if row["grid"] == "adaptive"]
    legs = result["output"], result["behaviour"]
    deployed = result.get("deployed")
    return Compared(name, file, result["target"]["sha256"], rows, *legs, result["verdict"]["overall"], deployed)


def _of_judged(name: str, file: Path, result: dict[str, Any]) -> Compared:
    return Compared(name, file, result["files"]["target"], [], None, result["behaviour"], result["overall"])

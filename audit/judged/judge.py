"""The verdict on an evaluation that another harness made, from its files to `judged.json`.

result = judge(Path("target"), Path("unlearned"), {"Q4_K_M": (Path("target-q4"), Path("unlearned-q4"))})
result["verdict"]["overall"]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict, cast, get_args

from unforgotten.audit.findings.retain import retain_findings
from unforgotten.audit.findings.row import FindingRow
from unforgotten.audit.judged.items import read_items
from unforgotten.audit.judged.leg import Models, judged_leg
from unforgotten.audit.judged.metrics import declared
from unforgotten.audit.verdict.gate import RETAIN_LOST, Gate
from unforgotten.audit.verdict.legs import BehaviourLeg
from unforgotten.audit.verdict.power import PowerRow, power_rows
from unforgotten.audit.verdict.rule import Word, decide, unmeasured_of
from unforgotten.records.files import write_json

SCHEMA = "unforgotten.judged/1"
JSON_FILE = "judged.json"
ONLY = "quantized"
"""What a format is called that was given without a name."""
WORDS: tuple[str, ...] = (*get_args(Word), RETAIN_LOST)


class Judged(TypedDict):
    """`judged.json`: what was read, the leg that it makes, and the verdict of the audit's rule on that leg alone."""

    schema: str
    version: str
    files: dict[str, str]
    behaviour: BehaviourLeg
    overall: Word
    reasons: list[str]
    findings: list[FindingRow]
    power: list[PowerRow]


def judge(
    target: Path,
    unlearned: Path,
    quantized: Mapping[str, tuple[Path, Path]],
    retrained: Path | None = None,
    metrics: Iterable[str] = (),
) -> Judged:
    """Return the verdict on the per-item results of models that another harness measured.

    Args:
        target: results of the model before unlearning; see `read_items` for the layouts.
        unlearned: results of the model after unlearning.
        quantized: results of both quantized, target first, by the name of the format.
        retrained: results of the model that never saw the forget texts.
        metrics: what metrics mean that are not known, each NAME=KIND.

    Raises:
        ValueError: the input breaks a rule; one line that names the file or argument.
    """
    told = dict(declared(text) for text in metrics)
    models = Models(
        read_items(target),
        read_items(unlearned),
        {name: (read_items(before), read_items(after)) for name, (before, after) in quantized.items()},
        None if retrained is None else read_items(retrained),
    )
    named = {**models.named(), **({} if models.retrained is None else {"retrained": models.retrained})}
    files = {who: str(items.source) for who, items in named.items()}
    _check_differ(files)
    leg = judged_leg(models, str(target), told)
    decision = decide("unclear", None, leg)
    return Judged(
        schema=SCHEMA,
        version=version("unforgotten"),
        files=files,
        behaviour=leg,
        overall=decision["overall"],
        reasons=decision["reasons"],
        findings=retain_findings(leg),
        power=power_rows(None, leg),
    )


def _check_differ(files: Mapping[str, str]) -> None:
    """Refuse one file for two models: whatever came back would read as nothing, or as all."""
    seen: dict[Path, str] = {}
    for who, file in files.items():
        first = seen.setdefault(Path(file).resolve(), who)
        if first != who:
            raise ValueError(f"{file}: must be the results of one model, got it for {first} and for {who}")


def read_quantized(target: Sequence[str], unlearned: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """Read `[NAME=]PATH` of both sides into pairs by the name of the format.

    Raises:
        ValueError: a side has a name that the other has not, or one twice.
    """
    sides = [
        _by_name(option, paths)
        for option, paths in (("--quantized-target", target), ("--quantized-unlearned", unlearned))
    ]
    if sides[0].keys() != sides[1].keys():
        names = [", ".join(side) or "none" for side in sides]
        raise ValueError(
            f"--quantized-unlearned must name the formats of --quantized-target, {names[0]}, got {names[1]}"
        )
    return {name: (path, sides[1][name]) for name, path in sides[0].items()}


def _by_name(option: str, given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.rpartition("=") if not Path(text).exists() else (ONLY, "", text)
        if (name or ONLY) in found:
            raise ValueError(f"{option} must name each format once, NAME=PATH, got {name or ONLY!r} twice")
        found[name or ONLY] = Path(path)
    return found


def read_judged_words(text: str) -> tuple[str, ...]:
    """Read the words of --fail-on.

    Raises:
        ValueError: a word is none that a judged evaluation can have.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in WORDS:
            raise ValueError(f"--fail-on must be of {', '.join(WORDS)}, got {word!r}")
    return words


def judged_gate(result: Judged, words: Sequence[str]) -> Gate:
    """Return the exit code of a judged evaluation, and why."""
    said: dict[str, str] = {result["overall"]: f"the verdict is {result['overall']}"}
    said |= {row["id"]: row["sentence"].rstrip(".") for row in result["findings"]}
    hits = [word for word in words if word in said]
    clauses = "; ".join(said.values())
    if hits:
        return Gate(1, f"--fail-on {', '.join(hits)}: {'; '.join(said[word] for word in hits)}")
    if words:
        return Gate(0, f"none of --fail-on {', '.join(words)}: {clauses}")
    return Gate(0, f"no --fail-on was given, so no word fails; {clauses}")


def write_judged(result: Judged, file: Path) -> None:
    """Write the result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)


def read_judged(file: Path) -> BehaviourLeg:
    """Return the leg of a `judged.json`, for an audit of the same models.

    Raises:
        ValueError: the file is none; one line that begins with it.
    """
    try:
        result = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA or "behaviour" not in result:
        raise ValueError(f"{file}: must be a file that unforgotten judge --out wrote, {SCHEMA}")
    return cast("BehaviourLeg", result["behaviour"])


def with_note(leg: BehaviourLeg, formats: Sequence[str]) -> BehaviourLeg:
    """Return the leg with notes on formats that it was judged in and the weights are not measured in, and the reverse."""
    others = [found["format"] for found in leg["formats"] if found["format"] not in formats]
    missing = unmeasured_of(leg, formats)
    notes = []
    if others:
        notes.append(
            f"Judged in {', '.join(others)}, in which the weights were not measured: the table of formats has no row of it."
        )
    if missing:
        notes.append(
            f"Not judged in {', '.join(missing)}: what comes back in these formats was not measured, only their weights."
        )
    return {**leg, "notes": [*notes, *leg["notes"]]} if notes else leg

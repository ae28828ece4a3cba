"""How the unlearned model was trained: what the theory starts from, and what no file of weights tells.

Given on the command line, or read beside the checkpoint: `unforgotten.json`, with any of `lr`, `steps`, `optimizer` and
`trained_in`, or as `unforgotten run` writes it; or `trainer_state.json` as transformers writes it, which holds lr and
steps. What is given goes before what is read. A recipe that lacks a part predicts nothing, and says which part.

    read_recipe(Path("models/unlearned"), GivenRecipe(optimizer="adamw", trained_in="bf16"))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast, get_args

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.hostile_json import parse_json_object

Optimizer = Literal["adamw", "sign", "sgd"]
TrainedIn = Literal["bf16", "fp16", "fp32"]
OWN_FILE = "unforgotten.json"
TRAINER_FILE = "trainer_state.json"
MOST_BYTES = 64 << 20
MOST_STEPS = 10**7
PARTS = ("lr", "steps", "optimizer", "trained_in")


class Recipe(TypedDict):
    """What is known of the training; `source` says from where. None is not known."""

    lr: float | None
    steps: int | None
    optimizer: Optimizer | None
    trained_in: TrainedIn | None
    source: str


class GivenRecipe(NamedTuple):
    """What was given on the command line, unchecked."""

    lr: float | None = None
    steps: int | None = None
    optimizer: str | None = None
    trained_in: str | None = None


NOTHING_GIVEN = GivenRecipe()


def read_recipe(unlearned: Path | str, given: GivenRecipe = NOTHING_GIVEN) -> Recipe | None:
    """Return the recipe of an unlearned checkpoint; None where nothing is known.

    Raises:
        ValueError: a part breaks its rule; it names the option or the file.
    """
    asked = {name: value for name, value in given._asdict().items() if value is not None}
    for name, value in asked.items():
        _check(f"--{name.replace('_', '-')}", name, value)
    read, place = _beside(Path(unlearned))
    parts = {**read, **asked}
    if not parts:
        return None
    sources = ([place] if set(read) - set(asked) else []) + (["command line"] if asked else [])
    values = {name: parts.get(name) for name in PARTS}
    return cast(Recipe, {**values, "source": " and ".join(sources)})


def missing_parts(recipe: Recipe | None) -> list[str]:
    """Return the options that would complete a recipe."""
    known: Mapping[str, Any] = recipe or {}
    return [f"--{name.replace('_', '-')}" for name in PARTS if known.get(name) is None]


def _beside(unlearned: Path) -> tuple[dict[str, Any], str]:
    """Return what the files beside a local checkpoint say, and the name of the file."""
    folder = unlearned if unlearned.is_dir() else unlearned.parent
    own, trainer = folder / OWN_FILE, folder / TRAINER_FILE
    if unlearned.exists() and own.is_file():
        return _own(own), OWN_FILE
    if unlearned.exists() and trainer.is_file():
        return _trainer(trainer), TRAINER_FILE
    return {}, ""


def _own(path: Path) -> dict[str, Any]:
    found = _object(path)
    dtypes = found.get("dtypes")
    if isinstance(dtypes, dict):
        return _run(found, dtypes)
    parts = {name: found[name] for name in PARTS if found.get(name) is not None}
    for name, value in parts.items():
        _check(f"{path}: {name}", name, value)
    return parts


def _run(found: Mapping[str, object], dtypes: Mapping[str, object]) -> dict[str, Any]:
    """Return the recipe of a model that `run` trained: by AdamW where it names no other, or null; in bfloat16 where that is rounded to nearest."""
    updated = dtypes.get("master") if dtypes.get("master") not in (None, "none") else dtypes.get("parameters")
    nearest = found.get("rounding") in (None, "nearest")
    trained_in = {"float32": "fp32", "bfloat16": "bf16" if nearest else None}.get(str(updated))
    parts = {
        "lr": found.get("lr"),
        "steps": found.get("steps"),
        "optimizer": found.get("optimizer", "adamw"),
        "trained_in": trained_in,
    }
    return {name: value for name, value in parts.items() if value is not None and _rule(name, value) is None}


def _trainer(path: Path) -> dict[str, Any]:
    """Return lr and steps of a trainer's state; a state that holds neither, or is no JSON, says nothing."""
    try:
        found = _object(path)
    except CheckpointError:
        return {}
    parts = {"lr": max(_rates(found.get("log_history")), default=None), "steps": found.get("global_step")}
    return {name: value for name, value in parts.items() if value is not None and _rule(name, value) is None}


def _rates(history: object) -> Iterator[float]:
    for entry in history if isinstance(history, list) else []:
        rate = entry.get("learning_rate") if isinstance(entry, dict) else None
        if rate is not None and _rule("lr", rate) is None:
            yield float(rate)


def _object(path: Path) -> dict[str, object]:
    if path.stat().st_size > MOST_BYTES:
        raise CheckpointError(path, f"must hold at most {MOST_BYTES} bytes", path.stat().st_size)
    return parse_json_object(path, path.read_bytes())


def _check(place: str, name: str, value: object) -> None:
    rule = _rule(name, value)
    if rule is not None:
        raise ValueError(f"{place} must be {rule}, got {value!r}")


def _rule(name: str, value: object) -> str | None:
    """Return the rule of a part that a value breaks."""
    if name == "lr":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and math.isfinite(value) and value > 0 else "positive and finite"  # type: ignore[arg-type, operator]
    if name == "steps":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and 1 <= value <= MOST_STEPS else f"a whole number from 1 to {MOST_STEPS}"  # type: ignore[operator]
    known = get_args(Optimizer if name == "optimizer" else TrainedIn)
    return None if value in known else f"one of {', '.join(known)}"

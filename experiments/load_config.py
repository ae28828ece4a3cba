"""The configuration of a run from a YAML profile, and dotted overrides of it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from unforgotten.experiments.config import RunConfig

PROFILES = files("unforgotten.experiments").joinpath("profiles")


def load_config(source: str, *, seed: int | None = None, overrides: Iterable[str] = ()) -> RunConfig:
    """Return a profile by name, or a YAML file, with `a.b=value` overrides.

    Raises:
        ValueError: the profile or file is missing, or a value breaks a rule; one line that names it.
    """
    tree = _read_tree(source)
    for override in overrides:
        _set_dotted(tree, override)
    if seed is not None:
        tree["seed"] = seed
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = _first(error)
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        given = "" if "got" in message else f", got {place}={first['input']!r}"
        raise ValueError(f"{source}: {place}: {message}{given}") from None


def _first(error: ValidationError) -> ErrorDetails:
    """Return the first complaint, with its whole place, where a section was read in a validator of another."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if not isinstance(inner, ValidationError):
        return first
    complaint = _first(inner)
    return {**complaint, "loc": (*first["loc"], *complaint["loc"])}


def profile_names() -> list[str]:
    """Return the profiles that the package ships."""
    return sorted(Path(str(entry)).stem for entry in PROFILES.iterdir() if str(entry).endswith(".yaml"))


def _read_tree(source: str) -> dict[str, Any]:
    if source in profile_names():
        text = PROFILES.joinpath(f"{source}.yaml").read_text()
    elif source.endswith((".yaml", ".yml")) and Path(source).is_file():
        text = Path(source).read_text()
    else:
        known = ", ".join(profile_names())
        raise ValueError(f"profile must be one of {known} or an existing .yaml file, got {source!r}")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: must be valid YAML, got {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: must be a mapping of sections, got {type(tree).__name__}")
    return tree


def _set_dotted(tree: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    *parents, leaf = path.split(".")
    if not equals or not leaf:
        raise ValueError(f"an override must read a.b=value, got {override!r}")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"an override must name a section of the profile, got {override!r}")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"an override must hold a YAML value, got {override!r}") from None

"""The configuration of a run from a YAML profile, and dotted overrides of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.own import is_own

PROFILES = files("unforgotten.experiments").joinpath("profiles")
NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_config(
    source: str,
    *,
    seed: int | None = None,
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] = NOTHING,
    methods: Sequence[str] = (),
    metrics: Sequence[str] = (),
    model: str | None = None,
) -> RunConfig:
    """Return the configuration of a profile, with some of its settings replaced.

    Args:
        source: name of a profile, or a YAML file.
        seed: seed in place of the profile's.
        overrides: settings in place of the profile's, as texts `a.b=value`.
        settings: settings in place of the profile's, by dotted name.
        methods: methods to run in place of the profile's, by name or by a reference to one's own; those that the profile
            has keep their settings.
        metrics: metrics to measure on demand beside the profile's, by name or by a reference to one's own.
        model: base model in place of the profile's, by name or by a reference to one's own.

    Raises:
        ValueError: the profile or file is missing, or a value breaks a rule; one line that names it.
    """
    tree = read_tree(_profile_text(source), source)
    for name, value in settings.items():
        _put(tree, name, value)
    _choose(tree, methods)
    _ask(tree, metrics)
    if model is not None:
        _put(tree, "base.kind", model)
    for override in overrides:
        set_dotted(tree, override)
    if seed is not None:
        tree["seed"] = seed
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(complaint(source, error)) from None


def _choose(tree: dict[str, Any], methods: Sequence[str]) -> None:
    """Cut a tree to these methods, and add those that it lacks."""
    if not methods:
        return
    section = tree.setdefault("unlearning", {})
    if isinstance(section, dict) and isinstance(section.setdefault("methods", {}), dict):
        section["methods"] = {**section["methods"], **{m: {} for m in methods if m not in section["methods"]}}
    tree["only_methods"] = list(methods)


def _ask(tree: dict[str, Any], metrics: Sequence[str]) -> None:
    """Add metrics on demand to those of a tree."""
    section = tree.setdefault("evaluation", {}) if metrics else None
    if isinstance(section, dict):
        asked = section.get("metrics") or ()
        section["metrics"] = list(dict.fromkeys([*asked, *metrics])) if isinstance(asked, list | tuple) else asked


def without_own(tree: Any) -> Any:
    """Return the tree of a configuration without what is somebody's own, whose code who reads it may not want to run."""
    if not isinstance(tree, dict):
        return tree
    section, asked, base = (tree.get(name) for name in ("unlearning", "evaluation", "base"))
    if isinstance(section, dict) and isinstance(section.get("methods"), dict):
        methods = {name: given for name, given in section["methods"].items() if not is_own(name)}
        tree = {**tree, "unlearning": {**section, "methods": methods}, "only_methods": None}
    if isinstance(asked, dict) and isinstance(asked.get("metrics"), list):
        names = [name for name in asked["metrics"] if not (isinstance(name, str) and is_own(name))]
        tree = {**tree, "evaluation": {**asked, "metrics": names}}
    if isinstance(base, dict) and isinstance(base.get("kind"), str) and is_own(base["kind"]):
        tree = {**tree, "base": {name: value for name, value in base.items() if name != "kind"}}
    return tree


def complaint(source: str, error: ValidationError) -> str:
    """Return one line that says which setting of a source breaks which rule, and what was given."""
    first = _first(error)
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if "got" in message else f", got {place}={first['input']!r}"
    return f"{source}: {place}: {message}{given}"


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


def _profile_text(source: str) -> str:
    if source in profile_names():
        return PROFILES.joinpath(f"{source}.yaml").read_text()
    if source.endswith((".yaml", ".yml")) and Path(source).is_file():
        return Path(source).read_text()
    known = ", ".join(profile_names())
    raise ValueError(f"profile must be one of {known} or an existing .yaml file, got {source!r}")


def read_tree(text: str, source: str) -> dict[str, Any]:
    """Return the mapping of a YAML text.

    Raises:
        ValueError: it is none; one line that names the source.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source}: must be valid YAML, got {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: must be a mapping of sections, got {type(tree).__name__}")
    return tree


def set_dotted(tree: dict[str, Any], override: str) -> None:
    """Put the value of an override `a.b=value`, which is YAML, in its place in a tree.

    Raises:
        ValueError: it does not read so, or names no section.
    """
    path, equals, text = override.partition("=")
    if not equals or path.endswith(".") or not path:
        raise ValueError(f"an override must read a.b=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"an override must hold a YAML value, got {override!r}") from None
    _put(tree, path, value)


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"an override must name a section of the profile, got {name}={value!r}")
    node[leaf] = value

"""What the modules of a package declare: a method, a metric or a quantizer is added by adding its file.

    # experiments/methods/mine.py
    METHODS = (by_loss(MINE, None),)

is found beside those of `ga.py` and `npo.py` by `declared("unforgotten.experiments.methods", "METHODS")`.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, TypeVar

REGISTRY = "registry"
"""The module of a package that asks, and is not asked itself."""


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """Name by which it is chosen."""
        ...


T = TypeVar("T", bound=Named)


def declared(package: str, variable: str) -> Iterator[Any]:
    """Yield the members of a module-level variable of every module of a package, in the order of the modules' names.

    A sub-package is searched where its name stands.

    A module is loaded only if its text assigns the variable: to list what there is, no loop and no torch is loaded.

    Args:
        package: dotted name of the package.
        variable: name of the variable, whose value is a sequence.
    """
    for found in sorted(pkgutil.iter_modules(import_module(package).__path__), key=lambda m: m.name):
        if found.ispkg:
            yield from declared(f"{package}.{found.name}", variable)
            continue
        spec = found.module_finder.find_spec(f"{package}.{found.name}", None)
        source = getattr(spec and spec.loader, "get_source", lambda name: "")(f"{package}.{found.name}")
        if found.name != REGISTRY and variable in _assigned(source or ""):
            yield from getattr(import_module(f"{package}.{found.name}"), variable)


def _assigned(source: str) -> set[str]:
    """Return the variables that the text of a module assigns at its top level."""
    targets: list[ast.expr] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets += statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def by_name(members: Iterable[T]) -> Mapping[str, T]:
    """Return the members by their names.

    Raises:
        ValueError: two have one name.
    """
    named: dict[str, T] = {}
    for member in members:
        if member.name in named:
            raise ValueError(f"names must differ, got {member.name!r} twice")
        named[member.name] = member
    return named

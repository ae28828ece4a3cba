"""What is somebody's own in a run: a name in a file or a module, given by reference in place of a name of this package.

    load_object("mine.py:answer_length", "metric")
    load_object("package.module:answer_length", "metric")

A file is loaded once; `digests` tells whether it is still the same.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
VARIANT = re.compile(r"(?P<name>.+?)\+[A-Za-z0-9][A-Za-z0-9-]*")
"""A name with another setting of the same: `NPO_GDR_SURE+row-99`."""
FORM = "a file of Python and a name in it, path.py:name, or module:name"


def is_own(name: str) -> bool:
    """Tell a reference from a name of this package."""
    return ":" in name


def label_of(name: str) -> str:
    """Return what rows, reports and folders call it: its name, or the part of its reference after the colon."""
    return name.rpartition(":")[2]


def without_variant(name: str) -> str:
    """Return a name without the variant that tells two settings of the same apart.

    >>> without_variant("NPO_GDR_SURE+row-99"), without_variant("c++/mine.py:own"), without_variant("mine.py:own+twice")
    ('NPO_GDR_SURE', 'c++/mine.py:own', 'mine.py:own')
    """
    found = VARIANT.fullmatch(name)
    return found["name"] if found else name


def load_object(reference: str, what: str) -> Any:
    """Return what a reference stands for.

    Args:
        reference: `path.py:name` or `module:name`.
        what: word for it in what is said of a wrong one: "method", "metric".

    Raises:
        ValueError: it has another form, its file or module is missing or fails to load, or holds no such name.
    """
    place, _, name = reference.rpartition(":")
    if not place or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"{what} must be {FORM}, got {what}={reference!r}")
    module = _module(place)
    if not hasattr(module, name):
        raise ValueError(f"{place}: must hold the {what}, got no name {name!r}")
    return getattr(module, name)


def function_of(reference: str, found: Any, arguments: Sequence[str], other: str) -> Callable[..., Any]:
    """Return what a reference stands for, if it is a function of these arguments.

    Raises:
        ValueError: it is none.
    """
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{reference}: must be a function or a {other}, got {type(found).__name__}")
    check_arguments(reference, found, arguments)
    function: Callable[..., Any] = found
    return function


def load_whole(
    reference: str, what: str, kind: str, parts: Sequence[str], arguments: Sequence[str], wrap: Callable[..., T]
) -> T:
    """Return what a reference stands for, if it has all parts, or what `wrap` makes of a function.

    Args:
        reference: `path.py:name` or `module:name`.
        what: word for it in what is said of a wrong one.
        kind: name of the protocol that has the parts.
        parts: attributes of the protocol; the last is the one that is called.
        arguments: arguments of that one, and of a function.
        wrap: function of a label, a function and its reference.

    Raises:
        ValueError: it cannot be loaded, or is neither.
    """
    found = load_object(reference, what)
    if all(hasattr(found, part) for part in parts) and not isinstance(found, type):
        check_arguments(reference, getattr(found, parts[-1]), arguments)
        whole: T = found
        return whole
    return wrap(label_of(reference), function_of(reference, found, arguments, kind), reference)


def named(name: str, known: Mapping[str, T], load: Callable[[str], T], rule: str, what: str) -> T:
    """Return the member of a name, or what a reference stands for.

    Args:
        name: name or reference.
        known: members of this package.
        load: function that loads a reference.
        rule: beginning of what is said of another name: "method must be one of".
        what: end of it: "method=".

    Raises:
        ValueError: there is none.
    """
    if is_own(name):
        return load(name)
    if name not in known:
        raise ValueError(f"{rule} {', '.join(known)}, or {FORM}, got {what}{name!r}")
    return known[name]


def said_of(function: Callable[..., Any], what: str) -> str:
    """Return the first line of a function's docstring."""
    return (inspect.getdoc(function) or f"a {what} without a docstring").splitlines()[0]


def _module(place: str) -> ModuleType:
    """Load a file, or import a module, from the working directory too."""
    file = place.endswith(".py")
    if file and not Path(place).is_file():
        raise ValueError(f"{place}: must be a file of Python, got no such file")
    try:
        return _load_file(Path(place)) if file else _import(place)
    except ModuleNotFoundError as error:
        if not file and error.name is not None and f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"{place}: must be a module that can be imported, got none of that name") from None
        raise ValueError(f"{place}: must load, got {_described(error)}") from error
    except Exception as error:
        raise ValueError(f"{place}: must load, got {_described(error)}") from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"unforgotten_own_{_digest(path)[:12]}", path)
    assert spec is not None  # the path ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up there
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def check_arguments(reference: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Refuse a function that cannot be called so.

    Raises:
        ValueError: it takes others.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: found out when it is called
    try:
        signature.bind(*arguments)
    except TypeError:
        raise ValueError(f"{reference}: must take ({', '.join(arguments)}), got {signature}") from None


def digests(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of each reference among the names; one that is in no file has none."""
    places = {name: name.rpartition(":")[0] for name in names if is_own(name)}
    files = {n: p if p.endswith(".py") else getattr(_module(p), "__file__", None) for n, p in places.items()}
    return {name: _digest(Path(file)) for name, file in files.items() if file is not None}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""What is said where an optional package is missing: one line that names it, and the command that installs it.

>>> missing("ray", "unforgotten[ray]")
"ray is missing: pip install 'unforgotten[ray]'"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

MODULES: Mapping[str, str] = {"llama-cpp-python": "llama_cpp"}
"""Names by which packages are imported that have others there than as pip knows them."""


def pip_install(requirement: str) -> str:
    """Return the command that installs a requirement, such as an extra: "unforgotten[hub]"."""
    return f"pip install '{requirement}'"


def missing(package: str, requirement: str) -> str:
    """Return the line that names a missing package and what to install for it."""
    return f"{package} is missing: {pip_install(requirement)}"


def module_of(requirement: str) -> str:
    """Return the name by which the package of a requirement is imported: "torchao==0.18.0" is torchao."""
    package = requirement.partition("==")[0]
    return MODULES.get(package, package.replace("-", "_"))


def need(requirement: str, *packages: str) -> None:
    """Refuse to go on without packages; nothing is imported.

    Args:
        requirement: requirement that brings all of them.
        packages: names by which they are imported.

    Raises:
        ValueError: one of them is missing; the first is named.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(missing(package, requirement))

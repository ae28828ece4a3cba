"""What is said where an optional package is missing: one line that names it, and the command that installs it.

>>> missing("ray", "unforgotten[ray]")
"ray is missing: pip install 'unforgotten[ray]'"
"""

from __future__ import annotations

import importlib.util


def pip_install(requirement: str) -> str:
    """Return the command that installs a requirement, such as an extra: "unforgotten[hub]"."""
    return f"pip install '{requirement}'"


def missing(package: str, requirement: str) -> str:
    """Return the line that names a missing package and what to install for it."""
    return f"{package} is missing: {pip_install(requirement)}"


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

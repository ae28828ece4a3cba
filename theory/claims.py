"""The registry of statements: every theorem that the project relies on, with its kind and its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Kind = Literal["exact", "law", "first-order", "conjecture"]
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True)
class Claim:
    """One statement: `id` as in the theory document, and the function that computes it."""

    id: str
    kind: Kind
    source: str
    function: str
    statement: str


CLAIMS: dict[str, Claim] = {}


def claim(id: str, *, kind: Kind, source: str) -> Callable[[F], F]:
    """Register a function as the executable form of statement `id`.

    Raises:
        ValueError: the function is registered twice.
    """

    def register(function: F) -> F:
        name = f"{function.__module__}.{function.__qualname__}"
        if name in CLAIMS:
            raise ValueError(f"claim must be registered once, got function={name!r} again")
        lead = (function.__doc__ or "").strip().split("\n\n")[0]
        CLAIMS[name] = Claim(id, kind, source, name, " ".join(lead.split()))
        return function

    return register

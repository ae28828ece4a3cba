"""The registry of statements: every theorem that the project relies on, its kind, its source, and its proofs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Kind = Literal["exact", "law", "first-order", "conjecture"]
Method = Literal["derivation", "smt", "exact", "exhaustive"]
F = TypeVar("F", bound=Callable[..., object])
E = TypeVar("E")


@dataclass(frozen=True)
class Claim:
    """One statement: `id` as in the theory document, and the function that computes it."""

    id: str
    kind: Kind
    source: str
    function: str
    statement: str


@dataclass(frozen=True)
class Proof:
    """One argument for a statement.

    Attributes:
        claim: id of the statement.
        method: "derivation": SymPy reaches the closed form from its definition; "smt": z3 finds no counterexample;
            "exact": rational arithmetic over a finite case list; "exhaustive": every value of a dtype.
        domain: cases that it covers, in words; whatever lies outside is only tested.
        function: name of the function that runs the argument and raises AssertionError where it fails.
        statement: sentence that is shown.
    """

    claim: str
    method: Method
    domain: str
    function: str
    statement: str


CLAIMS: dict[str, Claim] = {}
"""The claims of the modules that were imported so far; all of them after `load_claims`."""
PROOFS: dict[str, Proof] = {}
"""The proofs of the modules that were imported so far; all of them after `proofs.run.load_proofs`."""
STATEMENTS = "geometry", "laws", "models"
"""The sub-packages whose modules register claims. None of them needs an extra."""


def load_claims() -> dict[str, Claim]:
    """Import every module that registers a claim, and return all claims by the name of their function."""
    for name in STATEMENTS:
        package = importlib.import_module(f"unforgotten.theory.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return CLAIMS


def claim(id: str, *, kind: Kind, source: str) -> Callable[[F], F]:
    """Register a function as the executable form of statement `id`.

    Raises:
        ValueError: the function is registered twice.
    """
    return _register("claim", CLAIMS, lambda name, lead: Claim(id, kind, source, name, lead))


def proof(claim_id: str, *, method: Method, domain: str) -> Callable[[F], F]:
    """Register a function of no arguments that raises AssertionError unless statement `claim_id` holds on `domain`.

    Raises:
        ValueError: the function is registered twice.
    """
    return _register("proof", PROOFS, lambda name, lead: Proof(claim_id, method, domain, name, lead))


def _register(what: str, registry: dict[str, E], entry: Callable[[str, str], E]) -> Callable[[F], F]:
    """Return a decorator that enters a function by its full name, with the first paragraph of its docstring."""

    def register(function: F) -> F:
        name = f"{function.__module__}.{function.__qualname__}"
        if name in registry:
            raise ValueError(f"{what} must be registered once, got function={name!r} again")
        lead = (function.__doc__ or "").strip().split("\n\n")[0]
        registry[name] = entry(name, " ".join(lead.split()))
        return function

    return register

"""What tables say of the methods in published rows: a row names its method, and reports take no name apart."""

from __future__ import annotations

from collections.abc import Mapping

FORGET_TERMS: Mapping[str, tuple[str, ...]] = {"GA": ("GA", "GA_GDR", "GA_KLR"), "NPO": ("NPO", "NPO_GDR", "NPO_KLR")}
"""Methods by the loss that they forget with. One that is not here is counted in no table of forget terms."""


def forget_term(method: str | None) -> str | None:
    """Return the forget term of a method, a key of FORGET_TERMS; None where it has none."""
    return next((term for term, names in FORGET_TERMS.items() if method in names), None)

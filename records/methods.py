"""How reports group the methods of published rows: by this table, and never by taking the name of a method apart."""

from __future__ import annotations

from collections.abc import Mapping

FORGET_TERMS: Mapping[str, tuple[str, ...]] = {"GA": ("GA", "GA_GDR", "GA_KLR"), "NPO": ("NPO", "NPO_GDR", "NPO_KLR")}
"""Names of methods by the loss that they forget with. A method that is not here is counted in no table of forget terms."""


def forget_term(method: str | None) -> str | None:
    """Return the key of FORGET_TERMS that a method stands under, as does each `NAME+variant` of it; None where it stands under none."""
    name = None if method is None else method.partition("+")[0]
    return next((term for term, names in FORGET_TERMS.items() if name in names), None)

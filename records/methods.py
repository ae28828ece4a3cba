"""How reports group the methods of published rows: by this table, and never by taking a name apart."""

from __future__ import annotations

from collections.abc import Mapping

FORGET_TERMS: Mapping[str, tuple[str, ...]] = {"GA": ("GA", "GA_GDR", "GA_KLR"), "NPO": ("NPO", "NPO_GDR", "NPO_KLR")}
"""Names of methods by the loss that they forget with. A method that is not here is counted in no table of forget terms."""


def forget_term(method: str | None) -> str | None:
    """Return the key of FORGET_TERMS that a method stands under; None where it stands under none."""
    return next((term for term, names in FORGET_TERMS.items() if method in names), None)

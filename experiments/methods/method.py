"""What an unlearning method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ForgetTerm = Literal["GA", "NPO"]
RetainTerm = Literal["GDR", "KLR"] | None


@dataclass(frozen=True)
class Method:
    """loss = forget term + alpha * retain term."""

    forget: ForgetTerm
    retain: RetainTerm
    statement: str

"""What a quantizer must keep: every contract once, by name, in the order in which they are tried.

A check takes a described quantizer and weights, and returns what is wrong with the first weight that breaks the
contract, or None. `unforgotten.verification.contracts.search` looks for weights and shrinks them. After a failure of a
basic contract the others say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.verification.contracts.base import Contract, Counterexample
from unforgotten.verification.contracts.described import Quantizer, QuantizerLike
from unforgotten.verification.contracts.general import BASIC, FORMAT, GENERAL
from unforgotten.verification.contracts.grid import GRID

__all__ = ["BASIC", "CONTRACTS", "Contract", "Counterexample", "Quantizer", "QuantizerLike"]

CONTRACTS: Mapping[str, Contract] = {**BASIC, **GENERAL, **GRID, **FORMAT}

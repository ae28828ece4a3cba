"""What a quantizer must keep: every contract once, by name, in the order in which they are tried.

A check takes a described quantizer and weights, and returns what is wrong with the first weight that breaks the
contract, or None. `unforgotten.verification.third_party` looks for weights and shrinks them. After a failure of a
basic contract the others say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.verification.contract import Contract, Counterexample
from unforgotten.verification.described import Quantizer, QuantizerLike
from unforgotten.verification.general_contracts import BASIC, FORMAT, GENERAL
from unforgotten.verification.grid_contracts import GRID

__all__ = ["BASIC", "CONTRACTS", "Contract", "Counterexample", "Quantizer", "QuantizerLike"]

CONTRACTS: Mapping[str, Contract] = {**BASIC, **GENERAL, **GRID, **FORMAT}

"""Derivations and proofs of the statements. Needs sympy and z3; nothing else of the project imports it."""

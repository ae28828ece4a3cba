"""Derivations and proofs of the statements. Needs sympy and z3; nothing else of the project imports it.

One module for each group of statements, and `run`, which finds every function with `@proof`. `python -m
unforgotten.theory.proofs` runs them all, and says what is proved, where, and what is only tested.
"""

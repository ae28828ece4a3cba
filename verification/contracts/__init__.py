"""The contract of a quantizer: what any must keep, what a described one must, and the search for a violation.

`described.describe` takes somebody's function with its author's claims; `registry.CONTRACTS` holds all contracts, those
of `general` and those of `grid`; `search.verify` tries those that the claims imply, and `outcome` says what was found.
"""

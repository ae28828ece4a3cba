"""Unlearning methods, one file each: `method.py` says what one is, `registry.py` finds them, `descent.py` is the usual loop.

GA, NPO and their released forms stand here; `masked/` has SURE, `literature/` other methods of the literature, `robust/` what theory
recommends. `own.py` loads a method of one's own.
"""

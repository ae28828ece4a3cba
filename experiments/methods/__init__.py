"""Unlearning methods, one file each: `method.py` says what one is, `registry.py` finds them, `descent.py` is the usual loop."""

"""Base models, one file each: `base.py` says what one is, `registry.py` finds them."""

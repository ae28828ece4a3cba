"""The quantizers of a run, one file a library: `quantizer.py` says what one is, `registry.py` finds them."""

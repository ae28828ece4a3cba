"""The metrics, one file each: `metric.py` says what one is, `registry.py` finds them, `meter.py` measures a model by all."""

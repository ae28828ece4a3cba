"""Quantization formats as data, levels, scales and rounding, and the numpy reference that applies them."""

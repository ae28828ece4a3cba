"""Unlearn, quantize, evaluate: the real loop on real models (torch, transformers)."""

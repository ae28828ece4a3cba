"""Pairs of known origin that studies audit."""

"""Pairs that are quantized already: the codes of each library's layout, compared layer by layer."""

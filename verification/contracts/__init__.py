"""The contract of a quantizer: what any must keep, what a described one must, and the search for a violation."""

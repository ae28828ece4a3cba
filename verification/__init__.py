"""Properties that try to break the statements of `unforgotten.theory`; run with `pytest verification`."""

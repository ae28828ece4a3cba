"""What a weight does under a format and an optimizer: cells, drift, displacement, dead zones, motion (T1 to T5, T21).

Nothing here is random but the gradients of `motion`: `cells`, `preimages`, `drift` and `sandwich` say what a code does
when a weight moves, `dead_zone`, `adamw` and `optimizers` how far an optimizer can move it in a storage dtype.
"""

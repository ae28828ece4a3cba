"""The laws of how much of an update survives: flips, gating, energy, concentration, regimes, wash (T6 to T12, T22).

Each takes weights or their density (`densities`, `absmax`) and the size of an update, and gives an expectation.
`block_law` and `predict` put them together for a format, and `update` measures the same sums on two real tensors.
"""

"""From weights to what a model says: response, lost effects, divergence, recovery, lattices (T13 to T17)."""

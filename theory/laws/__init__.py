"""The laws of how much of an update survives: flips, gating, energy, concentration, regimes, wash (T6 to T12)."""

"""The quantizers of a run: their registry, and the torch path of the formats of `theory`."""

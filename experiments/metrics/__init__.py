"""The metrics of a run: their registry, and likelihood on a pair of models."""

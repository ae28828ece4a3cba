"""Findings about a measured pair: gain, storage, wash, spread, the predictions beside them, and the advice."""

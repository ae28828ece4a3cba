"""The arms of a run: in what a model is kept, and how its products and its steps are computed and rounded."""

"""What a model is trained on and asked about: the corpus, generated fiction, and texts from a file."""

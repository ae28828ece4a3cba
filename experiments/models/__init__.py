"""Models at work: the base model, its matrices, training, batches, generation, the scores of tokens, and what is saved."""

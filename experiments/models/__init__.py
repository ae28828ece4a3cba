"""Models at work: the base model, training, batches, generation, the scores of tokens, and what is saved."""

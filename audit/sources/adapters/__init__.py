"""What the tensors of a PEFT adapter are: which of the base's they speak of (`names`), and rows of tokens (`tokens`)."""

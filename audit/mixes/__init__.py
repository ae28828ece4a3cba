"""What a tool does to a whole model: a format for each matrix, under one name."""

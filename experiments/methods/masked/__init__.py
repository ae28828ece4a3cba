"""Methods that move only the weights which the forget loss leans on: SURE, and what was released under that name."""

"""What long work says of itself while it goes on: stages and steps, as bars on a terminal or lines in a log."""

"""The rows of a run as other programs write theirs."""

"""How the rows of the study `audit_cost` name their tasks."""

COLD = "from disk"
"""In the name of a task before which the files are evicted from the page cache."""

"""Studies, each a command: whether the audit tells the truth, how well gains are predicted, what work costs."""

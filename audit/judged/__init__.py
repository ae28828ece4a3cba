"""Verdicts on evaluations that another harness made: items in, the verdict of the audit's rule out, without a model."""

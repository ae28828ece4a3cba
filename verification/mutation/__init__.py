"""Mutation testing: the mutants, which tests see them, the session that runs them, and its report."""

"""Mutation testing: the mutants, which tests see them, the session that runs them, and its report.

`mutants` is the command. Mutants come from `operators`, at random, and from `planted_mistakes`, all there are;
`seen_by` maps tests to lines, `worker` runs tests against a mutant, `session` keeps verdicts, `report` publishes them.
"""

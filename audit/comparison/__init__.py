"""Several audits in one table: audits and judged evaluations in, what each kept of forgetting and knowledge out, ranked."""

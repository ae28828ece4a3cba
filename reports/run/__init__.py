"""The report of a run: its page, tables, figures, sentences, and the verdicts on conjectures and gates."""

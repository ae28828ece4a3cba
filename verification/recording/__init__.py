"""What a run of the verification leaves: its suite and report, runs under many seeds, and comparison of prints."""

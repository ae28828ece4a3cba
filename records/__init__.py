"""The rows of a run on disk: their contract, how they are read and appended, what each metric means. No torch."""

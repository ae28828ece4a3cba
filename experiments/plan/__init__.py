"""What a run would do and take, said before it starts: nothing is trained, nothing is fetched, no weights are made."""

"""Unlearning methods: their registry, and the descent that they share."""

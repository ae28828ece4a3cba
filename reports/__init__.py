"""Result rows in, one self-contained report out; nothing is computed here. `published/` holds committed results."""

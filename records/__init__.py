"""The ground floor: rows and other files on disk, their contract, what their names mean, and what all may need. No torch."""

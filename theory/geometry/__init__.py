"""What a weight does under a format and an optimizer: cells, drift, displacement, dead zones, motion (T1 to T5)."""

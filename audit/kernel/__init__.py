"""The compiled kernel that measures a pair of tensors: one weight, or sixteen, at a time."""

"""The weights leg: tensors are cut into pieces, measured in processes or on a Ray cluster, and summed."""

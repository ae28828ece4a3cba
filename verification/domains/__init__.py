"""What properties are tried on: strategies, sampled weights and updates, histories, networks, kernels as assembly."""

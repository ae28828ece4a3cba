"""What properties are tried on: strategies, sampled weights and updates, histories, networks, kernels as assembly.

`strategies` draws single cases for Hypothesis, from the kinds of `sampled_weights` and `sampled_updates`; `bulk` draws
thousands of rows of these kinds at once; `histories` are gradients for an optimizer, `networks` small models to train.
"""

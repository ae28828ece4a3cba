"""Two checkpoints under one set of names: what each name is, and views that bring the two together.

In: a pair as it was opened. Out: the same pair with one set of names and shapes as far as that can be known
(`comparable`): wrappers' prefixes, fused experts one by one, the common rows of two vocabularies, heads that are tied on
one side, and buffers that any model computes anew. What was done is said in the notes of the views.
"""

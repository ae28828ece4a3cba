"""From weights to what a model says: response, lost effects, divergence, recovery, lattices (T13 to T20).

`response`, `curvature` and `tails` take a gradient and an update to the noise that rounding adds to a loss;
`divergence`, `greedy` and `auc` take logits or scores to bounds of a metric; `recovery`, `retained` and `decomposition`
take metrics of each item to what came back, with intervals from `bootstrap`; `lattice` is about data-aware rounding;
`gating_certificate`, `dither` and `functional_gain` say what can be promised of a quantized model (T18 to T20).
"""

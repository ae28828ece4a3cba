"""Small real networks: what T3, T13, T14 and T15 say of whole models, with quantizers and updates that are real."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.models.decomposition import lost_effect
from unforgotten.theory.models.divergence import metric_change_upper_bound
from unforgotten.theory.models.greedy import certified_tokens
from unforgotten.verification.domains.networks import (
    Network,
    change,
    gradients,
    log_probabilities,
    logits,
    loss,
    moved,
    networks,
    quantized,
    trained,
)
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

NAMES = ("int4-row", "int2-row", "int8-row", "nf4-b64", "fp4-b64", "int4-row-asym", "fp8-row")
formats = st.sampled_from(NAMES).map(format_named)
H = 2.0**-20  # of a central difference, whose rest is h^2 |F'''| / 6 and whose rounding u F / h


@given(networks(), st.integers(0, 2), st.integers(0, 2**16))
def test_gradients__are_central_differences(net: Network, layer: int, at: int) -> None:
    """Derivatives of a loss of tanh layers of up to 16 inputs of size 4 are below 10^4 here, the third 10^9."""
    layer %= len(net.layers)
    where = np.unravel_index(at % net.layers[layer].size, net.layers[layer].shape)
    step = tuple(np.zeros_like(w) for w in net.layers)
    step[layer][where] = H
    slope = (loss(moved(net, step)) - loss(moved(net, tuple(-s for s in step)))) / (2 * H)
    slack = H**2 * 1e9 / 6 + 64 * U64 * (1 + abs(loss(net))) / H
    assert abs(slope - gradients(net)[layer][where]) <= slack


@given(networks(), formats, st.integers(1, 5))
def test_lost_effect__is_split_without_remainder_on_a_network(net: Network, fmt: Format, steps: int) -> None:
    """Gradient ascent as unlearning; the sum rounds 44 times at most, as in test_decomposition."""
    unlearned = trained(net, steps=steps, rate=-0.1)
    q, q_new = quantized(net, fmt), quantized(unlearned, fmt)
    at = {
        "w": loss(net),
        "w_new": loss(unlearned),
        "q": loss(q),
        "q_new": loss(q_new),
        "w_plus_d": loss(moved(net, change(q_new, q))),
        "q_plus_delta": loss(moved(q, change(unlearned, net))),
    }
    total, gating, base_shift = lost_effect(**at)
    assert abs(total - (gating + base_shift)) <= 45 * U64 * max(map(abs, at.values()))
    surviving = loss(q_new) - loss(q)
    assert abs(total - ((at["w_new"] - at["w"]) - surviving)) <= 45 * U64 * max(map(abs, at.values()))


@given(networks(), formats)
def test_certified_tokens__keep_their_class_in_a_quantized_network(net: Network, fmt: Format) -> None:
    before, after = logits(net), logits(quantized(net, fmt))
    certified = certified_tokens(before, np.abs(after - before).max(axis=1))
    assert (before.argmax(axis=1) == after.argmax(axis=1))[certified].all()


@given(networks(), formats)
def test_metric_change_upper_bound__holds_for_a_quantized_network(net: Network, fmt: Format) -> None:
    """The metric: the mean probability of the right class. KL has as many terms as classes, each rounded 4 times."""
    p, q = (log_probabilities(x) for x in (net, quantized(net, fmt)))
    terms = np.exp(p) * (p - q)
    size = np.exp(p) * (np.abs(p) + np.abs(q) + 1)
    kl = np.maximum(terms.sum(axis=1), 0) + (p.shape[1] + 8) * U64 * size.sum(axis=1)
    right = np.arange(len(net.labels)), net.labels
    moved_by = abs(float((np.exp(q)[right] - np.exp(p)[right]).mean()))
    # probabilities sum to 1 but for their roundings
    bound = metric_change_upper_bound(kl) + 8 * p.shape[1] * U64
    record("metric_change_upper_bound", fmt, *net.layers, net.inputs, ratio=moved_by / bound)
    assert moved_by <= bound

"""Small real networks in numpy: enough of a model for gradients, logits and losses to be those of one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format
from unforgotten.theory.formats.reference import round_trip
from unforgotten.verification.chance import rng_for

Array = NDArray[Any]


class Network(NamedTuple):
    """A multi-layer perceptron without biases, tanh between the layers, with data that it is asked about.

    Attributes:
        layers: matrices (outputs, inputs), float64.
        inputs: (examples, inputs of the first layer).
        labels: the right class of each example.
    """

    layers: tuple[Array, ...]
    inputs: Array
    labels: NDArray[np.int64]

    def with_layers(self, layers: tuple[Array, ...]) -> Network:
        """Return a network of the same data with other weights."""
        return self._replace(layers=layers)


def logits(net: Network) -> Array:
    """Return the logits, (examples, classes)."""
    x = net.inputs
    for w in net.layers[:-1]:
        x = np.tanh(x @ w.T)
    return np.asarray(x @ net.layers[-1].T)


def log_probabilities(net: Network) -> Array:
    """Return the log probabilities of the classes, in nats."""
    z = logits(net)
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def loss(net: Network) -> float:
    """Return the mean cross-entropy of a network in nats: F of the theory."""
    return float(-log_probabilities(net)[np.arange(len(net.labels)), net.labels].mean())


def gradients(net: Network) -> tuple[Array, ...]:
    """Return the gradients of the loss, layer by layer, by back-propagation."""
    activations = [net.inputs]
    for w in net.layers[:-1]:
        activations.append(np.tanh(activations[-1] @ w.T))
    back = np.exp(log_probabilities(net))
    back[np.arange(len(net.labels)), net.labels] -= 1
    back /= len(net.labels)
    found: list[Array] = []
    for w, x in zip(reversed(net.layers), reversed(activations), strict=True):
        found.append(back.T @ x)
        back = (back @ w) * (1 - x * x)
    return tuple(reversed(found))


def trained(net: Network, *, steps: int, rate: float) -> Network:
    """Train by some steps of gradient descent; at a negative rate, of ascent: unlearning in its plainest form."""
    for _ in range(steps):
        slopes = gradients(net)
        net = net.with_layers(tuple(w - rate * g for w, g in zip(net.layers, slopes, strict=True)))
    return net


def quantized(net: Network, fmt: Format) -> Network:
    """Return the network with Q(w) in place of every layer."""
    layers = (round_trip(w.astype(np.float32), fmt).astype(np.float64) for w in net.layers)
    return net.with_layers(tuple(layers))


def moved(net: Network, by: tuple[Array, ...]) -> Network:
    """Return the network with every layer moved."""
    return net.with_layers(tuple(w + d for w, d in zip(net.layers, by, strict=True)))


def change(after: Network, before: Network) -> tuple[Array, ...]:
    """Return the differences of the layers of two networks."""
    return tuple(a - b for a, b in zip(after.layers, before.layers, strict=True))


@st.composite
def networks(draw: st.DrawFn, *, most_width: int = 16) -> Network:
    """Draw a network of one to three layers, trained for up to 20 steps. Shrinks to one untrained layer."""
    widths = draw(st.lists(st.integers(2, most_width), min_size=2, max_size=4))
    examples, steps = draw(st.integers(1, 12)), draw(st.integers(0, 20))
    rng = rng_for("network", widths, examples, draw(st.integers(0, 2**32 - 1)))
    layers = tuple(rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(widths))
    net = Network(layers, rng.standard_normal((examples, widths[0])), rng.integers(0, widths[-1], examples))
    return trained(net, steps=steps, rate=0.2)

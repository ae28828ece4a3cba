"""Optimizer histories: gradients step by step, learning rates, decays; by the kind of training that they imitate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.geometry.adamw import extremal_gradients
from unforgotten.verification.chance import rng_for

Gradients = Callable[[np.random.Generator, int, int, float, float], NDArray[Any]]
MOST_STEPS = 40


def gaussian(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw gradients of a mean and noise, at a ratio of its own for each row."""
    mean = rng.standard_normal((rows, 1)) * 2.0 ** rng.uniform(-6, 6, (rows, 1))
    return np.asarray(mean + rng.standard_normal((rows, steps)))


def constant(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw one number for all steps: Adam moves by lr at each."""
    return np.broadcast_to(rng.standard_normal((rows, 1)), (rows, steps)).copy()


def alternating(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw one size, with signs that change at every step."""
    return constant(rng, rows, steps, beta1, beta2) * (-1.0) ** np.arange(steps)


def bursts(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw tiny gradients, and one that is large: the second moment remembers it for a thousand steps."""
    g = 1e-3 * rng.standard_normal((rows, steps))
    g[np.arange(rows), rng.integers(0, steps, rows)] = 1.0
    return g


def sparse(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw mostly zeros, as a row of an embedding sees; the first is not 0."""
    g = np.where(rng.random((rows, steps)) < 0.2, rng.standard_normal((rows, steps)), 0.0)
    g[:, 0] = rng.standard_normal(rows)
    return g


def scaled(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw gradients from 2^-60 to 2^60 within one history."""
    return rng.standard_normal((rows, steps)) * 2.0 ** rng.uniform(-60, 60, (rows, steps))


def extremal(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw the gradients whose last step is the largest that AdamW can take, disturbed a little: above lr."""
    noise = 2.0 ** rng.uniform(-30, -2, (rows, 1)) * rng.standard_normal((rows, steps))
    exact = extremal_gradients(steps, beta1, beta2) if beta1 else np.eye(steps)[-1] + 2.0**-40
    return np.asarray(exact * (1 + noise))


GRADIENTS: Mapping[str, Gradients] = {
    "gaussian": gaussian,
    "constant": constant,
    "alternating": alternating,
    "bursts": bursts,
    "sparse": sparse,
    "scaled": scaled,
    "extremal": extremal,
}


def mixed_gradients(rng: np.random.Generator, rows: int, steps: int, beta1: float, beta2: float) -> NDArray[Any]:
    """Draw histories of every kind in turn, (rows, steps)."""
    share = -(-rows // len(GRADIENTS))
    parts = [draw(rng, share, steps, beta1, beta2) for draw in GRADIENTS.values()]
    return np.stack(parts, axis=1).reshape(-1, steps)[:rows]


def adam_steps(g: NDArray[Any], beta1: float, beta2: float) -> NDArray[Any]:
    """Return m^_t / sqrt(v^_t) of every step at eps = 0, (rows, steps); 0 where no gradient was seen yet."""
    m, v, steps = np.zeros(len(g)), np.zeros(len(g)), []
    for t, now in enumerate(g.T, start=1):
        m, v = beta1 * m + (1 - beta1) * now, beta2 * v + (1 - beta2) * now * now
        root = np.sqrt(v / (1 - beta2**t))
        steps.append(np.divide(m / (1 - beta1**t), root, out=np.zeros_like(m), where=root > 0))
    return np.stack(steps, axis=1)


class History(NamedTuple):
    """A training of some weights: gradients (weights, steps), a rate for each step, decays."""

    gradients: NDArray[Any]
    rates: NDArray[Any]
    beta1: float
    beta2: float
    weight_decay: float


@st.composite
def histories(draw: st.DrawFn, *, weights: int = 3, most_steps: int = MOST_STEPS) -> History:
    """Draw a history of one kind, with a schedule and AdamW's decays. Shrinks to one step of a Gaussian gradient."""
    kind = draw(st.sampled_from(sorted(GRADIENTS)))
    steps = draw(st.integers(1, most_steps))
    beta1 = draw(st.sampled_from([0.9, 0.0, 0.5, 0.99]))
    beta2 = draw(st.sampled_from([0.999, 0.95, 0.3]))
    rng = rng_for("history", kind, steps, beta1, beta2, draw(st.integers(0, 2**32 - 1)))
    gradients = GRADIENTS[kind](rng, weights, steps, beta1, beta2)
    peak = 2.0 ** draw(st.integers(-20, -5))
    rates = peak * rng.uniform(0, 1, steps) if draw(st.booleans()) else np.full(steps, peak)
    return History(gradients, rates, beta1, beta2, draw(st.sampled_from([0.0, 0.01, 1.0])))

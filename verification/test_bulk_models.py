"""T15 and T17 on many models at once: distributions, logits and scores; lattices of GPTQ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.gptq import GptqRule, inverse_factor, round_columns
from unforgotten.theory.formats.group_grids import GroupGrid
from unforgotten.theory.models.auc import auc, auc_change_upper_bound
from unforgotten.theory.models.divergence import metric_change_upper_bound, total_variation_upper_bound
from unforgotten.theory.models.greedy import certified_tokens, greedy_metric_change_upper_bound
from unforgotten.theory.models.lattice import error_norm_upper_bound, lost_update_upper_bound, nearest_plane_loss
from unforgotten.verification.domains.bulk import chunks
from unforgotten.verification.oracles import U64
from unforgotten.verification.recording.tallies import record

LEAST = 2.0**-1000  # of a probability: its logarithm is finite
PROMPTS = 4
LATTICE_ROWS = 100  # weights quantized with one Hessian


def divergence(p: NDArray[Any], q: NDArray[Any]) -> NDArray[Any]:
    """KL in nats along the last axis, rounded up: terms of both signs, each with 4 roundings of its size."""
    terms = p * (np.log(p) - np.log(q))
    size = p * (np.abs(np.log(p)) + np.abs(np.log(q)))
    return np.maximum(terms.sum(-1), 0) + (p.shape[-1] + 4) * U64 * size.sum(-1)


def distributions(rng: np.random.Generator, rows: int, outcomes: int) -> tuple[Any, Any]:
    """Pairs near and far, (rows, outcomes) each: log-probabilities that differ by 2^-8 … 2^5 nats."""
    logits = rng.standard_normal((rows, outcomes)) * 2.0 ** rng.uniform(-3, 3, (rows, 1))
    moved = logits + rng.standard_normal(logits.shape) * 2.0 ** rng.uniform(-8, 5, (rows, 1))
    exps = (np.exp(x - x.max(-1, keepdims=True)) + LEAST for x in (logits, moved))
    p, q = (e / e.sum(-1, keepdims=True) for e in exps)
    return p, q


@pytest.mark.parametrize("outcomes", [2, 3, 16])
def test_total_variation_upper_bound__holds_in_bulk(outcomes: int) -> None:
    """TV is a sum of `outcomes` differences of rounded probabilities; those sum to 1 but for as many roundings."""
    for rng, rows in chunks("tv", outcomes):
        p, q = distributions(rng, rows, outcomes)
        tv = np.abs(p - q).sum(-1) / 2
        bound = total_variation_upper_bound(divergence(p, q)) + 4 * outcomes * U64
        record("total_variation_upper_bound", outcomes, rows=(p, q), ratio=float((tv / bound).max()))
        assert (tv <= bound).all()


@pytest.mark.parametrize("outcomes", [2, 16])
def test_metric_change_upper_bound__holds_in_bulk(outcomes: int) -> None:
    """The mean over PROMPTS of the worst f there is: 1 where the second model is likelier."""
    for rng, rows in chunks("metric", outcomes):
        p, q = distributions(rng, rows * PROMPTS, outcomes)
        worst = np.where(q > p, 1.0, 0.0)
        change = ((q - p) * worst).sum(-1).reshape(rows, PROMPTS).mean(-1)
        kl = divergence(p, q).reshape(rows, PROMPTS)
        bound = np.array([metric_change_upper_bound(x) for x in kl]) + 4 * outcomes * U64
        record(
            "metric_change_upper_bound",
            outcomes,
            ratio=float((change / bound).max()),
            rows=(p.reshape(rows, -1), q.reshape(rows, -1)),
        )
        assert (change <= bound).all()


def test_auc_change_upper_bound__holds_in_bulk() -> None:
    """Scores moved by c at most, some of them by c: the change is a difference of two AUCs, each rounded once."""
    for rng, rows in chunks("auc"):
        positive, negative = rng.normal(0.5, 1, (rows, 9)), rng.normal(0, 1, (rows, 7))
        c = 2.0 ** rng.uniform(-8, 1, rows)
        inward = (-1, 1) if rng.random() < 0.5 else (1, -1)
        moved = [
            x + side * c[:, None] * rng.choice([0.0, 0.5, 1.0], x.shape, p=[0.1, 0.1, 0.8])
            for x, side in zip((positive, negative), inward, strict=True)
        ]
        ratio = 0.0
        for i in range(rows):
            # a sum with c is rounded: it moves by up to u (|x| + c) more
            reach = float(c[i]) + 2 * U64 * (4 + float(np.abs(positive[i]).max() + np.abs(negative[i]).max()))
            change = abs(auc(moved[0][i], moved[1][i]) - auc(positive[i], negative[i]))
            bound = auc_change_upper_bound(positive[i], negative[i], reach) + 2 * U64
            assert change <= bound
            ratio = max(ratio, change / bound)
        record("auc_change_upper_bound", "scores", rows=(positive, negative, c), ratio=ratio)


@pytest.mark.parametrize("vocabulary", [2, 32])
def test_certified_tokens__keep_their_arg_max_in_bulk(vocabulary: int) -> None:
    """Also what answers of 8 tokens make of it: scores 1 where the answer is that of the first model, otherwise 0."""
    for rng, rows in chunks("greedy", vocabulary):
        logits = rng.standard_normal((rows, 8, vocabulary)) * 2.0 ** rng.uniform(-2, 4, (rows, 1, 1))
        size = 2.0 ** rng.uniform(-8, 2, (rows, 1, 1))
        moved = logits + size * rng.choice([-1.0, 0.0, 1.0], logits.shape)
        change = np.abs(moved - logits).max(-1)
        certified = certified_tokens(logits, change)
        same = logits.argmax(-1) == moved.argmax(-1)
        metric_change = 1 - same.all(-1).mean()
        bound = greedy_metric_change_upper_bound(certified)
        record("certified_tokens", vocabulary, rows=(logits, moved))
        record("greedy_metric_change_upper_bound", vocabulary, logits, moved, ratio=metric_change / bound)
        assert certified.any()
        assert same[certified].all()
        assert metric_change <= bound


@pytest.mark.parametrize("columns", [1, 2, 4, 8])
def test_lost_update_upper_bound__holds_in_bulk(columns: int) -> None:
    """And the error bound, on lattices of random Hessians, with a grid of 40 bits so that nothing is clipped.

    norms in float64: n^2 products, a factorization and an inverse, as in `test_lattice.norm_slack`.
    """
    rule = GptqRule(bits=40, group_size=None)
    for rng, rows in chunks("lattice", columns):
        for _ in range(-(-rows // LATTICE_ROWS)):
            a = rng.normal(size=(2 * columns, columns)) + rng.normal(size=(2 * columns, 1))
            h = a.T @ a / (2 * columns) + 0.1 * np.eye(columns)
            step, factor = rng.uniform(0.5, 2, columns), inverse_factor(h)
            w = rng.uniform(-9, 9, (LATTICE_ROWS, columns))
            delta = rng.normal(size=w.shape) * 2.0 ** rng.uniform(-8, 3, (len(w), 1))
            grid = GroupGrid(np.broadcast_to(step, w.shape), np.full(w.shape, 2.0**39))
            first, second = (round_columns(x, factor, rule, grid) for x in (w, w + delta))
            slack = 1 + 32 * columns**2 * U64 * float(np.linalg.cond(h))
            error = np.sqrt(nearest_plane_loss(first.compensated - first.values, factor))
            bound = float(error_norm_upper_bound(step, factor)) * slack
            record("error_norm_upper_bound", columns, h, step, rows=(w,), ratio=float(error.max()) / bound)
            assert (error <= bound).all()
            lost = delta - (second.values - first.values)
            norm = np.sqrt(np.einsum("ri,ij,rj->r", lost, h, lost))
            # w + delta is rounded: u of at most 9 + 8 * 8, in every column
            allowed = float(lost_update_upper_bound(step, factor)) * slack + 128 * U64 * columns * np.sqrt(np.trace(h))
            record("lost_update_upper_bound", columns, h, step, rows=(w, delta), ratio=float(norm.max() / allowed))
            assert (norm <= allowed).all()

"""Public reports about tensors that differ by order, orientation, convention or a rescaling, not by an update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit import AuditResult, audit_pair
from unforgotten.audit.verdict.gate import gate

Pair = Callable[..., tuple[Path, Path]]
Tensors = dict[str, NDArray[Any]]
SIZE = 64
LAYERS = 6
Q, NORM, LAYER = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight", "model.layers"


def model() -> Tensors:
    rng = np.random.default_rng(0)
    names = [f"{LAYER}.{i}.self_attn.q_proj.weight" for i in range(LAYERS)]
    found = {name: rng.normal(0, 0.02, (SIZE, SIZE)).astype(np.float32) for name in names}
    return found | {NORM: rng.uniform(0.1, 0.4, SIZE).astype(np.float32)}


def updated(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(1)
    return {n: w + rng.normal(0, 2e-4, w.shape).astype(np.float32) for n, w in tensors.items()}


def audited(pair: Pair, changes: Tensors, target: Tensors | None = None) -> AuditResult:
    before = model() if target is None else target
    return audit_pair(*pair(before, updated(before) | changes, moved=False), ["int8-row"])


def layouts(result: AuditResult) -> list[dict[str, Any]]:
    return [dict(row) for row in result["findings"] if row["id"] == "other-layout"]


def interleaved(w: NDArray[Any], heads: int = 2) -> NDArray[Any]:
    """Rows of each head as old converters of llama.cpp permuted them."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (interleaved, "the rows are the same in another order, and that is no update"),
        (np.transpose, "the matrix is the same, transposed, and that is no update"),
        (lambda w: np.random.default_rng(3).permutation(w.ravel()).reshape(w.shape), "the files cannot tell which"),
    ],
)
def test_a_matrix_in_another_order_is_no_update(change: Callable[..., Any], says: str, report_pair: Pair) -> None:
    """llama.cpp#3018: q and k permuted in one of two files passed as an update as large as the weights."""
    result = audited(report_pair, {Q: change(updated(model())[Q])})
    (row,) = layouts(result)
    assert (row["severity"], row["tensor"]) == ("warning", Q)
    assert says in row["sentence"]
    assert row["effect"] > 1
    assert result["verdict"]["legs"]["weights"] == "unclear"
    assert result["verdict"]["reasons"][0] == row["sentence"]
    assert gate(result, ["unclear"]).code == 1


def test_an_update_of_half_the_length_is_an_update(report_pair: Pair) -> None:
    w = model()[Q]
    noise = np.random.default_rng(5).normal(0, 0.01, w.shape).astype(np.float32)
    assert layouts(audited(report_pair, {Q: w + noise})) == []


def test_a_model_trained_anew_is_said_to_be_far_and_not_blamed(report_pair: Pair) -> None:
    rng = np.random.default_rng(7)
    anew = {n: rng.normal(0, 0.02, w.shape).astype(np.float32) for n, w in model().items() if n != NORM}
    (row,) = layouts(audited(report_pair, anew))
    assert row["severity"] == "note"
    assert "trained anew" in row["sentence"]


@pytest.mark.parametrize(("sign", "side"), [(1, "unlearned"), (-1, "target")])
def test_norms_stored_as_one_plus_w_are_another_convention(sign: int, side: str, report_pair: Pair) -> None:
    """vllm#31464: Gemma's norms as w in one file and 1 + w in the other counted as an update that is kept."""
    (row,) = layouts(audited(report_pair, {NORM: updated(model())[NORM] + np.float32(sign)}))
    assert f"as where the {side} stores 1 + w" in row["sentence"]
    assert row["tensor"] == NORM


@pytest.mark.parametrize("folded", [True, False])
def test_a_rescaling_between_a_norm_and_its_matrices_is_said(folded: bool, report_pair: Pair) -> None:
    """llm-compressor#2296: scales of AWQ folded into a norm change every weight after it, and not the model."""
    scale = np.random.default_rng(9).uniform(0.7, 1.4, SIZE).astype(np.float32)
    new = updated(model())
    changes = {NORM: model()[NORM] * scale} | ({Q: new[Q] / scale} if folded else {})
    found = layouts(audited(report_pair, changes))
    assert len(found) == folded
    if folded:
        assert found[0]["tensor"] == Q
        assert "none." in found[0]["sentence"]

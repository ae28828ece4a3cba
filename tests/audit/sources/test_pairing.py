"""Which tensors are compared, and which pairs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit.run import audit_pair
from unforgotten.audit.sources.checkpoint import Checkpoint, open_checkpoint
from unforgotten.audit.sources.pairing import is_quantized, pair
from unforgotten.audit.sources.safetensors_header import CheckpointError
from unforgotten.audit.weights.leg import weights_leg

Tensors = dict[str, NDArray[Any]]
EMBEDDING = "model.embed_tokens.weight"
MATRIX = "model.layers.0.q_proj.weight"
HEAD = "lm_head.weight"
BF16 = ml_dtypes.bfloat16


def tensors(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        EMBEDDING: rng.normal(size=(8, 64)).astype(np.float32),
        MATRIX: rng.normal(size=(4, 64)).astype(np.float32),
        "model.norm.weight": np.ones(64, np.float32),
    }


def save(folder: Path, content: Tensors) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file(content, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "shape", "quantized"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (4, 4), True),
        ("transformer.h.0.mlp.c_fc.weight", (4, 4), True),
        ("model.layers.0.self_attn.q_proj.bias", (4,), False),
        ("model.layers.0.input_layernorm.weight", (4,), False),
        ("model.layers.0.q_norm.weight", (4, 4), False),
        ("model.embed_tokens.weight", (4, 4), False),
        ("transformer.wte.weight", (4, 4), False),
        ("transformer.wpe.weight", (4, 4), False),
        ("gpt_neox.embed_out.weight", (4, 4), False),
        ("lm_head.weight", (4, 4), False),
        ("model.layers.0.experts.weight", (2, 4, 4), False),
        ("model.layers.0.inv_freq", (4, 4), False),
    ],
)
def test_rule_by_name(name: str, shape: tuple[int, ...], quantized: bool) -> None:
    assert is_quantized(name, shape) is quantized


def test_pair_names_every_tensor_once(tmp_path: Path) -> None:
    names = pair(save(tmp_path / "t", tensors()), save(tmp_path / "u", tensors(1)))
    assert names.quantized == (MATRIX,)
    assert names.kept == (EMBEDDING, "model.norm.weight")


@pytest.mark.parametrize("owner", ["t", "u"])
def test_tied_head_in_one_checkpoint_is_dropped(owner: str, tmp_path: Path) -> None:
    content = {name: tensors(seed) for seed, name in enumerate("tu")}
    content[owner][HEAD] = content[owner][EMBEDDING].copy()
    names = pair(*(save(tmp_path / name, content[name]) for name in "tu"))
    assert HEAD not in names.kept


@pytest.mark.parametrize("owner", ["t", "u"])
def test_untied_head_in_one_checkpoint_is_refused(owner: str, tmp_path: Path) -> None:
    content = {name: tensors(seed) for seed, name in enumerate("tu")}
    content[owner][HEAD] = content[owner][EMBEDDING] + np.float32(1)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' must be in both"):
        pair(*(save(tmp_path / name, content[name]) for name in "tu"))


def bad_pairs() -> dict[str, tuple[Tensors, tuple[str, ...]]]:
    """Unlearned checkpoints that do not fit `tensors()`, and words of the message."""
    missing, extra, shape, integer, empty = (tensors() for _ in range(5))
    del missing[MATRIX]
    extra["model.layers.1.q_proj.weight"] = extra[MATRIX].copy()
    shape[MATRIX] = shape[MATRIX].reshape(64, 4)
    integer[MATRIX] = np.ones((4, 64), np.int8)
    empty[MATRIX] = np.ones((0, 64), np.float32)
    return {
        "missing": (missing, (MATRIX, "must be in both", "no such tensor")),
        "extra": (extra, ("model.layers.1.q_proj.weight", "must be in both")),
        "shape": (shape, (MATRIX, "shape [4, 64]", "got [64, 4]")),
        "integer": (integer, (MATRIX, "BF16", "got int8")),
        "empty": (empty, (MATRIX, "shape [4, 64]", "got [0, 64]")),
    }


@pytest.mark.parametrize("kind", bad_pairs())
def test_pair_that_does_not_match_is_refused(kind: str, tmp_path: Path) -> None:
    content, words = bad_pairs()[kind]
    save(tmp_path / "t", tensors())
    save(tmp_path / "u", content)
    with pytest.raises(CheckpointError) as caught:
        audit_pair(tmp_path / "t", tmp_path / "u", ["int4-row"], tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [MATRIX, EMBEDDING])
@pytest.mark.parametrize("side", ["t", "u"])
def test_tensor_that_is_not_finite_is_refused(dtype: type, value: float, name: str, side: str, tmp_path: Path) -> None:
    content: dict[str, Tensors] = {s: {n: w.astype(dtype) for n, w in tensors().items()} for s in "tu"}
    content[side][name][3, 5] = value
    for s in "tu":
        save(tmp_path / s, content[s])
    with pytest.raises(CheckpointError) as caught:
        audit_pair(tmp_path / "t", tmp_path / "u", ["int4-row"], tmp_path / "out")
    place = tmp_path / side / "model.safetensors"
    assert str(caught.value) == (
        f"{place}: tensor {name!r} must be finite, got {value} at flat index {3 * 64 + 5} "
        f"(1 of {content[side][name].size} weights)"
    )
    assert not (tmp_path / "out").exists()


def test_checkpoints_without_a_matrix_are_refused(tmp_path: Path) -> None:
    t = save(tmp_path / "t", {"model.norm.weight": np.ones(64, np.float32)})
    with pytest.raises(CheckpointError, match=r"two-dimensional .*got 1 other tensors"):
        pair(t, t)


def test_signalling_nan_is_refused(tmp_path: Path) -> None:
    content = tensors()
    bits = np.full((4, 64), 0x3F80, np.uint16)
    bits[0, 0] = 0x7F81
    content[MATRIX] = bits.view(BF16)
    u = save(tmp_path / "u", content)
    with pytest.raises(CheckpointError, match="must be finite, got nan at flat index 0"):
        weights_leg(u, u, ["int4-row"])


def test_empty_matrix_is_refused_with_its_name(tmp_path: Path) -> None:
    content = tensors() | {MATRIX: np.ones((0, 64), np.float32)}
    u = save(tmp_path / "u", content)
    with pytest.raises(CheckpointError, match=f"{MATRIX}' must fit int4-row"):
        weights_leg(u, u, ["int4-row"])


def test_range_that_overflows_is_refused_with_its_name(tmp_path: Path) -> None:
    largest = np.finfo(np.float32).max
    content = tensors()
    content[MATRIX][0, :2] = -largest, largest
    u = save(tmp_path / "u", content)
    with pytest.raises(CheckpointError, match=f"{MATRIX}' must fit int4-row-asym"):
        weights_leg(u, u, ["int4-row-asym"])


def test_buffers_and_dtypes_may_differ_between_the_two(tmp_path: Path) -> None:
    t = tensors() | {"mask": np.ones((2, 2), bool), "ids": np.arange(4)}
    u = {n: w.astype(BF16) if w.dtype == np.float32 else w for n, w in t.items()}
    u["model.norm.weight"] = u["model.norm.weight"].astype(np.float16)
    leg = weights_leg(save(tmp_path / "t", t), save(tmp_path / "u", u), ["int4-row"])
    assert leg.kept == {"ids": False, "mask": False, EMBEDDING: True, "model.norm.weight": False}
    assert leg.storage_dtype == "bfloat16"

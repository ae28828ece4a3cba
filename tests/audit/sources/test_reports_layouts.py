"""Public reports about layers that one file lacks or stores otherwise: MTP, nested heads, fused beside single experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.audit import AuditResult, CheckpointError, audit_pair, open_pair

Pair = Callable[..., tuple[Path, Path]]
Tensors = dict[str, NDArray[Any]]
EMBEDDING = "model.embed_tokens.weight"
FORMATS = ["int8-row"]


def draw(shape: tuple[int, ...], seed: int = 7) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def audited(pair: tuple[Path, Path]) -> AuditResult:
    return audit_pair(*pair, FORMATS, pair[0].parent / "out")


MTP: dict[str, Tensors] = {
    "deepseek": {
        "model.layers.1.eh_proj.weight": draw((16, 32)),
        "model.layers.1.self_attn.q_proj.weight": draw((16, 16)),
        "model.layers.1.mlp.experts.0.up_proj.weight": draw((16, 16)),
    },
    "qwen": {"mtp.fc.weight": draw((16, 32)), "mtp.layers.0.mlp.up_proj.weight": draw((32, 16))},
    "mimo": {"model.mtp_layers.0.input_proj.weight": draw((16, 64))},
}
SHARES = {"deepseek": "71.9", "qwen": "71.9", "mimo": "71.9"}  # 1,024 of 1,424 numbers


@pytest.mark.parametrize("kind", MTP)
@pytest.mark.parametrize("side", [0, 1])
def test_layers_of_multi_token_prediction_in_one_file_are_not_compared(side: int, kind: str, report_pair: Pair) -> None:
    """transformers#35688: loading and saving DeepSeek-V3 drops its layer 61, and the pair was refused for it."""
    result = audited(report_pair(*((MTP[kind], None) if side == 0 else (None, MTP[kind]))))
    assert (result["coverage"]["tensors"], result["coverage"]["weights"]) == (1, 256)
    (note,) = result["notes"]
    word = ("target", "unlearned")[side]
    assert note.startswith(f"Only the {word} stores multi-token prediction, which plain decoding does not run")
    assert f"{len(MTP[kind])} tensors with {SHARES[kind]} % of its numbers are not compared" in note


@pytest.mark.parametrize("kind", MTP)
def test_layers_of_multi_token_prediction_in_both_files_are_compared(kind: str, report_pair: Pair) -> None:
    result = audited(report_pair(both=MTP[kind]))
    assert result["coverage"]["tensors"] == 1 + len(MTP[kind])
    assert result["notes"] == []


def test_a_part_of_such_a_layer_is_refused_by_name(report_pair: Pair) -> None:
    lost = "model.layers.1.eh_proj.weight"
    with pytest.raises(CheckpointError, match=f"tensor '{lost}' must be in both checkpoints"):
        audited(report_pair(both=MTP["deepseek"], unlearned={lost: None}))


def test_another_layer_of_one_file_is_refused_by_name(report_pair: Pair) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight' must be in both checkpoints"):
        audited(report_pair({"model.layers.1.self_attn.q_proj.weight": draw((16, 16))}))


HEADS = ["language_model.lm_head.weight", "model.language_model.lm_head.weight", "_orig_mod.lm_head.weight"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_nested_head_that_is_tied_is_left_out(side: int, head: str, report_pair: Pair) -> None:
    """transformers#43429: models of text and images have their head within `language_model.`."""
    embedding = np.random.default_rng(0).normal(0, 0.02, (8, 16)).astype(np.float32)
    own = {head: embedding, EMBEDDING: embedding}
    result = audited(report_pair(*((own, {EMBEDDING: embedding}) if side == 0 else ({EMBEDDING: embedding}, own))))
    assert result["coverage"]["kept_changed"] == []
    assert any(f"stores {head}, equal to its embedding (tied)" in note for note in result["notes"])


@pytest.mark.parametrize("head", [*HEADS, "lm_head.weight"])
@pytest.mark.parametrize("config", [None, {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}])
def test_an_untied_head_is_compared_with_the_embedding_of_the_text(
    config: object, head: str, report_pair: Pair
) -> None:
    """The configuration of the text alone may say that the head is tied; one that is stored nowhere must be."""
    result = audited(report_pair(None, {head: draw((8, 16))}, config=config))
    assert result["coverage"]["kept_changed"] == [head]
    assert any(f"has an untied {head}" in note for note in result["notes"])


@pytest.mark.parametrize("config", [{"text_config": {"tie_word_embeddings": False}}, {"tie_word_embeddings": False}])
def test_a_nested_head_is_refused_where_the_other_side_says_that_it_is_untied(
    config: object, report_pair: Pair
) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' must be in both"):
        audited(report_pair(None, {HEADS[0]: draw((8, 16))}, config=config))


def test_of_two_embeddings_that_of_the_same_model_is_the_heads(report_pair: Pair) -> None:
    talker: Tensors = {f"{who}.model.embed_tokens.weight": draw((8, 16), n) for n, who in enumerate(("a", "b"))}
    own = talker | {"b.lm_head.weight": draw((8, 16), 3)}
    result = audited(report_pair(talker, own))
    assert any("its embedding 'b.model.embed_tokens.weight' is compared" in note for note in result["notes"])


EXPERTS, HIDDEN, INNER = 3, 8, 6
MODULE = "model.layers.0.mlp.experts"


def singles(shift: float = 0, *, hidden: int = HIDDEN, inner: int = INNER, mixtral: bool = False) -> Tensors:
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    module = MODULE.replace("mlp", "block_sparse_moe") if mixtral else MODULE
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    return {
        f"{module}.{e}.{name}.weight": draw(shape, 10 * e + k) + np.float32(shift)
        for e in range(EXPERTS)
        for k, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }


def fused(of: Tensors, *, turned: bool = False, alternating: bool = False) -> Tensors:
    """The same weights as two tensors, gate before up or row by row in turn, as (out, in) or turned."""
    gate, up, down = (np.stack(list(of.values())[k::3]) for k in range(3))
    both = (
        np.stack([gate, up], axis=2).reshape(len(gate), -1, gate.shape[2])
        if alternating
        else np.concatenate([gate, up], 1)
    )
    found = {f"{MODULE}.gate_up_proj": both, f"{MODULE}.down_proj": down}
    return {n: np.ascontiguousarray(w.swapaxes(1, 2)) for n, w in found.items()} if turned else found


@pytest.mark.parametrize("mixtral", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", [0, 1])
def test_fused_experts_are_compared_with_single_ones(side: int, turned: bool, mixtral: bool, report_pair: Pair) -> None:
    """vllm#36997: transformers 5 saves with `save_original_format=False` fused what was stored expert by expert."""
    target, unlearned = singles(mixtral=mixtral), singles(1e-3, mixtral=mixtral)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    both = ({router: draw((EXPERTS, HIDDEN))}, {router.replace("block_sparse_moe", "mlp"): draw((EXPERTS, HIDDEN))})
    sides = [target | (both[0] if mixtral else both[1]), unlearned | (both[0] if mixtral else both[1])]
    sides[side] = fused((target, unlearned)[side], turned=turned) | both[1]
    pair = report_pair(*sides)
    before, after = open_pair(*pair)
    assert set(before.tensors) == set(after.tensors)
    for name, w in target.items():
        assert np.array_equal(before.read(name), w)
        assert np.array_equal(after.read(name), unlearned[name])
        assert np.array_equal(after.read_rows(name, 2, 5), unlearned[name][2:5])
        assert np.array_equal(after.read_flat(name, 3, 17), unlearned[name].reshape(-1)[3:17])
    result = audited(pair)
    assert result["coverage"]["weights"] == 256 + 3 * EXPERTS * HIDDEN * INNER
    word = ("target", "unlearned")[side]
    assert any(f"2 tensors of fused experts of the {word} checkpoint are compared" in note for note in result["notes"])


@pytest.mark.parametrize("told", ["type", "bias"])
def test_gate_and_up_of_gpt_oss_alternate(told: str, report_pair: Pair) -> None:
    of = singles()
    stored = fused(of, turned=True, alternating=True)
    config = {"model_type": "gpt_oss"} if told == "type" else None
    bias = {} if told == "type" else {f"{MODULE}.gate_up_proj_bias": draw((EXPERTS, 2 * INNER))}
    before, after = open_pair(*report_pair(of | bias, stored | bias, config=config))
    for name, w in of.items():
        assert np.array_equal(after.read(name), w)
        assert np.array_equal(before.read(name), w)


@pytest.mark.parametrize(("kind", "turned"), [("llama4_text", True), ("qwen3_moe", False)])
def test_the_models_type_decides_of_square_experts(kind: str, turned: bool, report_pair: Pair) -> None:
    of = {n: w for n, w in singles(hidden=8, inner=8).items() if "down_proj" in n}
    stored = np.stack(list(of.values()))
    stored = np.ascontiguousarray(stored.swapaxes(1, 2)) if turned else stored
    _, after = open_pair(*report_pair(of, {f"{MODULE}.down_proj": stored}, config={"model_type": kind}))
    assert all(np.array_equal(after.read(name), w) for name, w in of.items())


def square(**changes: Any) -> tuple[Tensors, Tensors]:
    of = {n: w for n, w in singles(hidden=8, inner=8).items() if "down_proj" in n}
    return of, {f"{MODULE}.down_proj": np.stack(list(of.values())), **changes}


BAD: dict[str, tuple[tuple[Tensors, Tensors], object, str]] = {
    "square": (square(), None, r"must be known as \(experts, out, in\) or \(experts, in, out\).*model_type None"),
    "either order": (square(), {"model_type": "qwen3_vl_moe"}, r"must be known as .*model_type 'qwen3_vl_moe'"),
    "one expert less": (
        (dict(list(singles().items())[:-3]), fused(singles())),
        None,
        r"must hold the \w+ matrices of experts 0 … 2",
    ),
    "another width": ((singles(hidden=9), fused(singles())), None, r"must have the shape \[3, 9, 6\] or \[3, 6, 9\]"),
    "alternating rows": (
        (singles(), fused(singles(), alternating=True)),
        {"model_type": "gpt_oss"},
        r"must be stored as \(experts, in, out\) where gate and up alternate",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_experts_that_do_not_fit_are_refused_in_one_line(kind: str, report_pair: Pair) -> None:
    (target, unlearned), config, words = BAD[kind]
    with pytest.raises(CheckpointError, match=words) as caught:
        audited(report_pair(target, unlearned, config=config))
    assert str(caught.value).isprintable()


def test_experts_of_both_kinds_on_one_side_are_refused_by_name(report_pair: Pair) -> None:
    with pytest.raises(CheckpointError, match="must be in both checkpoints"):
        audited(report_pair(singles() | fused(singles()), singles()))

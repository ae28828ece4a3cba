"""Public reports about names: routers, buffers of one side, wrappers, heads, vocabularies, and which file was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from unforgotten.audit import AuditResult, CheckpointError, audit_pair, open_pair
from unforgotten.audit.sources.checkpoint import INDEX, SINGLE
from unforgotten.audit.sources.matching.kinds import is_router
from unforgotten.audit.sources.matching.prefixes import core, renames

Pair = Callable[..., tuple[Path, Path]]
MATRIX, EMBEDDING = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"
FORMATS = ["int8-row"]


def draw(shape: tuple[int, ...], seed: int = 7) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def audited(pair: tuple[Path, Path]) -> AuditResult:
    return audit_pair(*pair, FORMATS, pair[0].parent / "out")


def assert_base(result: AuditResult) -> None:
    """The one matrix of the base pair is what was measured."""
    assert (result["coverage"]["tensors"], result["coverage"]["weights"]) == (1, 256)
    assert result["formats"][0]["unchanged"] == 0


@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("model.layers.0.mlp.gate.weight", True),
        ("model.layers.0.block_sparse_moe.gate.weight", True),
        ("model.layers.0.mlp.router.weight", True),
        ("model.layers.0.feed_forward.router.weight", True),
        ("model.layers.0.mlp.shared_expert_gate.weight", True),
        ("model.layers.0.block_sparse_moe.router.layer.weight", True),
        ("blk.0.ffn_gate_inp.weight", True),
        ("model.layers.0.mlp.gate_proj.weight", False),
        ("model.layers.0.mlp.experts.0.gate_proj.weight", False),
        ("model.layers.0.self_attn.gate.weight", False),
        ("blk.0.ffn_gate.weight", False),
        ("blk.0.ffn_gate_exps.weight", False),
    ],
)
def test_routers_by_name(name: str, router: bool) -> None:
    assert is_router(name) is router


@pytest.mark.parametrize("name", ["mlp.gate", "block_sparse_moe.gate", "mlp.router", "mlp.shared_expert_gate"])
def test_an_update_of_a_router_alone_is_named(name: str, report_pair: Pair) -> None:
    """transformers PR#48801: routers stay in 16 bit; one that changed was counted as quantized."""
    router = f"model.layers.0.{name}.weight"
    result = audited(report_pair({router: draw((4, 16))}, {router: draw((4, 16), 8)}, moved=False))
    assert (result["coverage"]["tensors"], result["coverage"]["kept_changed"]) == (1, [router])
    assert result["verdict"]["reasons"][0].startswith(
        f"Only routers changed ({router!r}): quantizers keep them in 16 bit"
    )
    assert next(f["id"] for f in result["findings"]) == "router-only"
    assert any("1 routers of experts stay in 16 bit" in note for note in result["notes"])


def test_a_router_beside_an_update_is_kept(report_pair: Pair) -> None:
    router = "model.layers.0.mlp.gate.weight"
    result = audited(report_pair({router: draw((4, 16))}, {router: draw((4, 16), 8)}))
    assert_base(result)
    assert result["coverage"]["kept_changed"] == [router]


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": (8,),  # every Llama-2 pair saved by two releases of transformers
    "model.rotary_emb.inv_freq": (8,),
    "transformer.h.0.attn.masked_bias": (),
    "transformer.h.0.attn.bias": (1, 1, 8, 8),
    "model.embeddings.position_ids": (1, 8),
}


@pytest.mark.parametrize("name", BUFFERS)
@pytest.mark.parametrize("side", [0, 1])
def test_buffers_of_one_side_that_are_computed_anew_are_left_out(name: str, side: int, report_pair: Pair) -> None:
    only = {name: draw(BUFFERS[name])}
    result = audited(report_pair(*((only, None) if side == 0 else (None, only))))
    assert_base(result)
    word = ("target", "unlearned")[side]
    assert any(f"Only the {word} stores 1 buffers" in note and name in note for note in result["notes"])


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "transformer.h.0.attn.bias"])
def test_other_tensors_of_one_side_are_refused(name: str, report_pair: Pair) -> None:
    """A vector named `attn.bias` is a bias; only the mask of four axes is computed anew."""
    with pytest.raises(CheckpointError, match="must be in both checkpoints"):
        audited(report_pair(None, {name: draw((16,))}))


PREFIXES = ["language_model.model.", "model.language_model.", "", "_orig_mod.model.", "module.model.", "transformer."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("side", [0, 1])
def test_wrappers_are_matched_where_the_mapping_is_one_to_one(prefix: str, side: int, report_pair: Pair) -> None:
    """transformers' VLMs moved from language_model.model. to model.language_model.: each pair over that was refused."""
    pair = report_pair()
    content = {prefix + n.removeprefix("model."): w for n, w in load_file(pair[side] / SINGLE).items()}
    save_file(content, pair[side] / SINGLE)
    result = audited(pair)
    assert_base(result)
    assert any(
        "3 tensors of the unlearned checkpoint are matched by name, with another prefix" in n for n in result["notes"]
    )
    before, after = open_pair(*pair)
    assert list(before.tensors) == list(after.tensors)


def test_a_mapping_that_is_not_one_to_one_is_none() -> None:
    assert core("model._orig_mod.layers.0._checkpoint_wrapped_module.up.weight") == "layers.0.up.weight"
    assert core("model.model") == "model"
    assert renames(["model.a"], ["module.a", "transformer.a"]) == {}
    assert renames(["model.a", "module.a"], ["transformer.a"]) == {}
    assert renames(["model.a", "x.b"], ["module.a", "y.b"]) == {"module.a": "model.a"}


@pytest.mark.parametrize("side", [0, 1])
def test_an_untied_head_is_compared_with_the_tied_embedding(side: int, report_pair: Pair) -> None:
    head = {"lm_head.weight": draw((8, 16))}
    result = audited(report_pair(*((head, None) if side == 0 else (None, head))))
    assert_base(result)
    assert result["coverage"]["kept_changed"] == ["lm_head.weight"]
    assert any("has an untied lm_head.weight" in note for note in result["notes"])


def test_an_untied_head_is_refused_where_the_other_side_says_that_its_own_is_untied(report_pair: Pair) -> None:
    pair = report_pair(None, {"lm_head.weight": draw((8, 16))}, config={"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' must be in both"):
        audited(pair)


@pytest.mark.parametrize("turned", [False, True])
def test_vocabularies_that_differ_by_rows_are_compared_in_the_common_ones(turned: bool, report_pair: Pair) -> None:
    own = np.random.default_rng(0).normal(0, 0.02, (8, 16)).astype(np.float32)  # that of the base pair
    longer = np.concatenate([own, draw((3, 16))])
    head, head_longer = draw((8, 16)), np.concatenate([draw((8, 16)), draw((3, 16), 9)])
    sides = [{"lm_head.weight": head}, {EMBEDDING: longer, "lm_head.weight": head_longer}]
    result = audited(report_pair(*(sides[::-1] if turned else sides)))
    assert_base(result)
    assert result["coverage"]["kept_changed"] == []
    assert any("the first 8 of both are compared" in note and "11" in note for note in result["notes"])


def test_rows_of_other_matrices_must_be_equal_in_number(report_pair: Pair) -> None:
    with pytest.raises(CheckpointError, match="must have the target's shape"):
        audited(report_pair(None, {MATRIX: draw((17, 16))}))


def test_a_single_file_beside_an_index_is_said(report_pair: Pair) -> None:
    """mlx-vlm#1329: a directory with model.safetensors, shards and their index; which was read was not said."""
    t, u = report_pair()
    save_file(load_file(u / SINGLE), u / "model-00001-of-00001.safetensors")
    weights = dict.fromkeys(load_file(u / SINGLE), "model-00001-of-00001.safetensors")
    (u / INDEX).write_text(json.dumps({"weight_map": weights}))
    result = audited((t, u))
    (note,) = result["notes"]
    assert "model.safetensors was read, as transformers does" in note
    assert INDEX in note
    assert "model-00001-of-00001.safetensors" in note
    assert "as transformers does" in (t.parent / "out" / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "consolidated.safetensors"])
def test_weights_beside_those_that_are_read_are_said(name: str, report_pair: Pair) -> None:
    t, u = report_pair()
    (t / name).write_bytes(b"{}")
    (note,) = audited((t, u))["notes"]
    assert name in note


def test_buffers_of_float8_scales_and_of_4_bits_are_compared(report_pair: Pair, tmp_path: Path) -> None:
    """F8_E8M0 and F4 are dtypes of safetensors 0.6: a file with either was refused as a whole."""
    scales = np.array([1, 2, 0.5, 4], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    t, u = report_pair()
    for folder, byte in ((t, 0x21), (u, 0x31)):
        tensors = {n: w for n, w in load_file(folder / SINGLE).items()}
        header: dict[str, object] = {}
        data = b""
        for name, dtype, shape, raw in [
            *((n, "F32", list(w.shape), w.tobytes()) for n, w in tensors.items()),
            ("model.scales", "F8_E8M0", [4], scales.tobytes()),
            ("model.codes", "F4", [2, 4], bytes([byte, 2, 3, 4])),
        ]:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    result = audited((t, u))
    assert_base(result)
    assert result["coverage"]["kept_changed"] == ["model.codes"]
    assert "F4" in result["target"]["dtypes"]


@pytest.mark.parametrize("rounded", [True, False])
def test_frequencies_that_differ_are_no_update(rounded: bool, report_pair: Pair) -> None:
    """Frequencies in half precision on one side counted as a part of the update that is "kept whole"."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    full = (1.0 / 10000 ** np.linspace(0, 0.9, 8)).astype(np.float32)
    other = full.astype(np.float16) if rounded else 2 * full
    result = audit_pair(*report_pair({name: full}, {name: other}), ["int8-row"])
    assert not any(row["id"] == "kept-changed" for row in result["findings"])
    (note,) = result["notes"]
    assert ("by rounding to the narrower dtype alone" in note) is rounded
    assert name in note


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_frequencies_as_whole_numbers_are_no_rounding(dtype: type, report_pair: Pair) -> None:
    """What the fuzz found: a cast of numbers that whole numbers do not hold, which numpy warns of."""
    name = "model.rotary_emb.inv_freq"
    full = np.array([3e38, np.nan, -1, 0.5], np.float32)
    result = audit_pair(*report_pair({name: full}, {name: np.zeros(4, dtype)}), ["int8-row"])
    (note,) = result["notes"]
    assert "by more than rounding" in note

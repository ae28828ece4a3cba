"""Public reports about adapters: bases of Conv1D, tied heads, patterns that fit nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint, open_pair
from unforgotten.audit.sources.peft import open_adapter
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize

Pair = Callable[..., tuple[Path, Path]]
Tensors = dict[str, NDArray[Any]]
SIZE, RANK, SCALING = 16, 2, 4.0
C_PROJ = "transformer.h.0.attn.c_proj"


def factors(rows: int = SIZE, columns: int = SIZE) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(RANK, columns)).astype(np.float32), rng.normal(size=(rows, RANK)).astype(np.float32)


def adapter_of(base: Path, module: str, a: NDArray[Any], b: NDArray[Any], **changes: Any) -> Path:
    folder = base.parent / "adapter"
    folder.mkdir()
    root = f"base_model.model.{module}"
    save_file({f"{root}.lora_A.weight": a, f"{root}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": SCALING * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def merged(base: Path, adapter: Path, name: str) -> NDArray[Any]:
    return open_adapter(adapter, open_checkpoint(base)).read(name)


def square(report_pair: Pair, module: str, config: object) -> tuple[Path, NDArray[Any]]:
    w = np.random.default_rng(2).normal(size=(SIZE, SIZE)).astype(np.float32)
    base, _ = report_pair({f"{module}.weight": w}, config=config)
    return base, w


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(
    ("module", "kind", "turned"),
    [
        (C_PROJ, "gpt2", True),
        (C_PROJ, "decision_transformer", True),
        (C_PROJ, "gpt_bigcode", False),
        ("transformer.h.0.attn.out", "gpt2", False),
        ("model.layers.0.self_attn.o_proj", "llama", False),
    ],
)
def test_the_models_type_says_how_a_square_base_is_stored(
    module: str, kind: str, turned: bool, flag: bool, report_pair: Pair
) -> None:
    """PEFT decides by the class of the module, whatever fan_in_fan_out says (peft#324); w + sBA was taken for Conv1D."""
    base, w = square(report_pair, module, {"model_type": kind})
    a, b = factors()
    found = merged(base, adapter_of(base, module, a, b, fan_in_fan_out=flag), f"{module}.weight")
    delta = SCALING * (b.astype(np.float64) @ a)
    assert np.array_equal(found, (w + (delta.T if turned else delta)).astype(np.float32))


@pytest.mark.parametrize("config", [None, {}, {"model_type": "jais"}, {"model_type": 3}])
def test_a_square_base_of_an_unknown_kind_is_refused(config: object, report_pair: Pair) -> None:
    base, _ = square(report_pair, C_PROJ, config)
    with pytest.raises(
        CheckpointError, match=r"'transformer\.h\.0\.attn\.c_proj\.weight' must be known as nn\.Linear"
    ) as e:
        merged(base, adapter_of(base, C_PROJ, *factors()), f"{C_PROJ}.weight")
    assert str(e.value).isprintable()


def test_shapes_that_fit_one_way_decide(report_pair: Pair) -> None:
    w = np.random.default_rng(2).normal(size=(SIZE, 3 * SIZE)).astype(np.float32)
    base, _ = report_pair({"transformer.h.0.attn.c_attn.weight": w})
    a, b = factors(3 * SIZE, SIZE)
    adapter = adapter_of(base, "transformer.h.0.attn.c_attn", a, b, fan_in_fan_out=False)
    found = open_adapter(adapter, open_checkpoint(base)).read("transformer.h.0.attn.c_attn.weight")
    assert np.array_equal(found, (w + SCALING * (b.astype(np.float64) @ a).T).astype(np.float32))


def test_the_shape_of_c_attn_tells_of_a_base_of_an_unknown_kind(report_pair: Pair) -> None:
    w, attn = (np.random.default_rng(s).normal(size=(SIZE, n * SIZE)).astype(np.float32) for s, n in ((2, 1), (3, 3)))
    base, _ = report_pair({f"{C_PROJ}.weight": w, "transformer.h.0.attn.c_attn.weight": attn})
    a, b = factors()
    adapter = adapter_of(base, C_PROJ, a, b)
    merged_w = open_adapter(adapter, open_checkpoint(base)).read(f"{C_PROJ}.weight")
    assert np.array_equal(merged_w, (w + SCALING * (b.astype(np.float64) @ a).T).astype(np.float32))


def test_matrices_of_conv1d_are_turned_before_they_are_quantized(report_pair: Pair) -> None:
    """bitsandbytes and GPTQ transpose Conv1D first: along stored rows other weights would share a scale."""
    rng = np.random.default_rng(2)
    w = rng.normal(size=(SIZE, 3 * SIZE)).astype(np.float32)
    name, step = "transformer.h.0.attn.c_attn.weight", rng.normal(0, 0.1, w.shape).astype(np.float32)
    pair = report_pair({name: w}, {name: w + step}, config={"model_type": "gpt2"}, moved=False)
    result = audit_pair(*pair, ["int4-row"])
    assert any("1 matrices of Conv1D are stored as (in, out) and are turned" in note for note in result["notes"])
    before, after = open_pair(*pair)
    assert np.array_equal(before.read(name), w.T)
    fmt = format_named("int4-row")
    flips = (quantize(before.read(name), fmt)[0] != quantize(after.read(name), fmt)[0]).sum()
    assert result["formats"][0]["code_flips"] == flips


def test_lora_of_a_tied_head_unties_it(report_pair: Pair) -> None:
    """An adapter with lm_head among its modules over a base that stores no head was refused: "no 'lm_head.weight'"."""
    base, _ = report_pair()
    a, b = factors(8, SIZE)
    adapter = adapter_of(base, "lm_head", a, b)
    before, after = open_pair(base, adapter)
    embedding = before.read("model.embed_tokens.weight")
    assert np.array_equal(
        after.read("lm_head.weight"), (embedding + SCALING * (b.astype(float) @ a)).astype(np.float32)
    )
    assert np.array_equal(after.read("model.embed_tokens.weight"), embedding)
    result = audit_pair(base, adapter, ["int8-row"])
    assert result["coverage"]["kept_changed"] == ["lm_head.weight"]
    assert any("merge_and_unload would change the embedding" in note for note in result["notes"])
    assert any("untied lm_head.weight" in note for note in result["notes"])


@pytest.mark.parametrize("pattern", ["alpha_pattern", "rank_pattern"])
def test_a_key_that_fits_no_module_is_said(pattern: str, report_pair: Pair) -> None:
    base, _ = report_pair()
    module, (a, b) = "model.layers.0.self_attn.q_proj", factors()
    adapter = adapter_of(base, module, a, b, **{pattern: {"q_porj": 1, "self_attn.q_proj": 2}})
    result = audit_pair(base, adapter, ["int8-row"])
    (note,) = result["notes"]
    assert f"the key 'q_porj' of {pattern} fits no module of the adapter" in note


@pytest.mark.parametrize("indexed", [True, False])
def test_merged_shards_beside_an_adapter_are_said(indexed: bool, report_pair: Pair) -> None:
    """peft#1381: merged shards saved into the adapter's folder were passed over without a word."""
    base, merged_model = report_pair()
    adapter = adapter_of(base, "model.layers.0.self_attn.q_proj", *factors())
    shard = "model-00001-of-00001.safetensors"
    (merged_model / "model.safetensors").rename(adapter / shard)
    if indexed:
        names = open_checkpoint(adapter / shard).tensors
        index = {"weight_map": dict.fromkeys(names, shard)}
        (adapter / "model.safetensors.index.json").write_text(json.dumps(index))
    result = audit_pair(base, adapter, ["int8-row"])
    (note,) = result["notes"]
    not_read = "'adapter_config.json'" if indexed else f"'{shard}'"
    assert "beside it, and not read: " in note
    assert not_read in note
    _, after = open_pair(base, adapter)
    whole = open_checkpoint(adapter / shard)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(after.read(name), whole.read(name)) is indexed

"""Names of other tools lead to what stands for them here, and what a tool leaves alone is what the tool itself leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten.audit import audit_pair
from unforgotten.audit.mixes.mix import check_name
from unforgotten.audit.mixes.tools import BNB, ELSEWHERE, SCHEMES, meant
from unforgotten.audit.sources.matching.kinds import EXPERTS, is_router
from unforgotten.theory.formats.names import deterministic_format_named


@pytest.mark.parametrize("name", [*SCHEMES, *BNB])
def test_every_name_of_a_tool_leads_to_a_format_of_an_audit(name: str) -> None:
    ours = meant(name.upper())
    assert ours is not None
    assert deterministic_format_named(ours).name == ours
    with pytest.raises(ValueError, match=rf"its weights are in '{ours}'$"):
        check_name(name)


def test_eight_bits_in_lower_case_are_no_preset() -> None:
    assert (meant("INT8"), meant("int8")) == ("int8-row-ct", None)
    with pytest.raises(ValueError, match=r"the nearest is 'int8-row'"):
        deterministic_format_named("int8")


def test_presets_are_those_of_compressed_tensors() -> None:
    presets = pytest.importorskip(
        "compressed_tensors.quantization.quant_scheme", reason="its presets: requirements-conformance.txt"
    ).PRESET_SCHEMES
    blocks = {"channel": "row", "tensor": "tensor"}
    for name, preset in presets.items():
        w, ours = preset.get("weights"), meant(name)
        if w is None or name == "NVFP4":
            assert ours is None
            continue
        strategy = str(w.strategy)
        if ours is None:
            assert ELSEWHERE.match(name)
        elif w.type == "int":
            kind = f"int{w.num_bits}-{blocks.get(strategy, f'g{w.group_size}')}-ct{'' if w.symmetric else '-asym'}"
            assert ours == kind
        elif w.block_structure is not None:
            assert ours == "fp8-b{}x{}".format(*w.block_structure)
        elif w.num_bits == 8:
            assert ours == f"fp8-{blocks[strategy]}"
        else:
            assert ours == {16: "nvfp4", 32: "mxfp4-b32-ct"}[w.group_size]
    assert {name.upper() for name in SCHEMES} <= {name.upper() for name in presets}


@pytest.mark.parametrize("name", ["MXFP8", "awq", "AWQ-int4", "gptq:int4-g128", "IQ4_XS", "gguf:IQ4_XS", "smoothquant"])
def test_what_looks_at_text_is_to_be_handed_in_as_it_was_deployed(name: str) -> None:
    with pytest.raises(ValueError, match="--deployed QTARGET QUNLEARNED") as refused:
        check_name(name)
    assert "\n" not in str(refused.value)


def test_no_format_of_ours_is_taken_for_a_tools() -> None:
    from unforgotten.theory.formats.nearest import examples

    for name in examples():
        if "dither" not in name:
            check_name(name)


def expert_pair(root: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    layer = "model.layers.0"
    shapes = {
        f"{layer}.self_attn.q_proj.weight": (64, 64),
        f"{layer}.block_sparse_moe.gate.weight": (2, 64),
        **{f"{layer}.block_sparse_moe.experts.{i}.w1.weight": (96, 64) for i in range(2)},
    }
    target = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    unlearned = {name: w + rng.normal(0, 1e-3, w.shape).astype(np.float32) for name, w in target.items()}
    paths = []
    for side, weights in {"t": target, "u": unlearned}.items():
        (root / side).mkdir()
        save_file(weights, root / side / "model.safetensors")
        paths.append(root / side)
    return paths


@pytest.mark.parametrize(("formats", "said"), [(["nf4-b64", "int4-g64"], True), (["int4-g64"], False)])
def test_experts_that_bitsandbytes_leaves_are_said(formats: list[str], said: bool, tmp_path: Path) -> None:
    pair = expert_pair(tmp_path)
    notes = [note for note in audit_pair(pair[0], pair[1], formats)["notes"] if "bitsandbytes" in note]
    assert bool(notes) == said
    if said:
        assert notes[0].startswith("nf4-b64: 75.0 % of the weights measured stand in experts")


def test_a_dense_model_has_no_such_note(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in "tu":
        (tmp_path / side).mkdir()
        w = rng.normal(0, 0.02, (64, 64)).astype(np.float32)
        save_file({"model.layers.0.self_attn.q_proj.weight": w}, tmp_path / side / "model.safetensors")
    notes = audit_pair(tmp_path / "t", tmp_path / "u", ["nf4-b64"])["notes"]
    assert not any("bitsandbytes" in note for note in notes)


def test_bitsandbytes_replaces_what_is_said_and_leaves_experts_and_routers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="loads the model: unforgotten[experiments]")
    pytest.importorskip("bitsandbytes", reason="the tool itself: unforgotten[quantizers]")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("experts were linear layers before transformers 5")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, device_map={"": "cpu"}
    )
    replaced = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert {name.rsplit(".", 1)[-1] for name in replaced} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    others = [
        name for name, w in model.named_parameters() if w.dim() > 1 and name.removesuffix(".weight") not in replaced
    ]
    assert any(EXPERTS.search(name) for name in others)
    assert any(is_router(name) for name in others)

"""Public reports about fused experts, and a model of 128 experts: fused and not, from safetensors and from GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import AuditResult, CheckpointError, audit_pair, open_pair

Pair = Callable[..., tuple[Path, Path]]
Tensors = dict[str, NDArray[Any]]
FUSED, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
ROUTER = "model.layers.0.mlp.gate.weight"
EXPERTS, HIDDEN, INNER = 128, 32, 16
FORMATS = ["int4-row", "nf4-b64"]


def draw(shape: tuple[int, ...], seed: int = 3) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def audited(pair: tuple[Path, Path], formats: list[str] = FORMATS) -> AuditResult:
    return audit_pair(*pair, formats, pair[0].parent / "out")


def rows_of(result: AuditResult, pair: tuple[Path, Path]) -> dict[str, list[Any]]:
    """The measured numbers of each tensor, whatever it is called."""
    assert result["tensors"]
    found: dict[str, list[Any]] = {}
    for row in pq.read_table(pair[0].parent / "out" / "tensors.parquet").to_pylist():
        numbers = [row[k] for k in ("format", "grid", "weights", "unchanged", "code_flips", "gain")]
        found.setdefault(row["name"], []).append(numbers)
    return found


def test_an_update_of_fused_experts_alone_is_measured(report_pair: Pair) -> None:
    """bitsandbytes#1849, Model-Optimizer#1173: experts of three axes were kept, and the pair looked unchanged."""
    w = draw((4, 32, 16))
    moved = w.copy()
    moved[2] += np.float32(1e-3)
    pair = report_pair({FUSED: w}, {FUSED: moved}, moved=False)
    result = audited(pair, ["int8-row"])
    assert result["coverage"]["kept_changed"] == []
    assert (result["coverage"]["tensors"], result["coverage"]["weights"]) == (5, 256 + w.size)
    assert result["verdict"]["legs"]["weights"] != "no update"
    unchanged = {name: rows[0][3] for name, rows in rows_of(result, pair).items()}
    assert unchanged == {MATRIX: 256, **{f"{FUSED}[{e}]": 0 if e == 2 else 512 for e in range(4)}}
    assert any(
        f"1 tensors of fused experts are measured expert by expert, as NAME[0]: '{FUSED}'" in n for n in result["notes"]
    )
    assert any("do not say which axis is the inputs" in note for note in result["notes"])


MATRIX = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("kind", ["shapes", "type"])
def test_experts_stored_inputs_first_are_turned(kind: str, report_pair: Pair) -> None:
    """Llama 4 and gpt-oss store (experts, in, out): blocks lie along the inputs, not along the last axis."""
    up, down = draw((4, 16, 32)), draw((4, 16, 16), 4)  # hidden 16, inner 16
    both: Tensors = {FUSED: up, DOWN: down} if kind == "shapes" else {FUSED: up}
    config = None if kind == "shapes" else {"model_type": "x", "text_config": {"model_type": "llama4_text"}}
    pair = report_pair(both, {n: w + np.float32(1e-3) for n, w in both.items()}, config=config)
    before, after = open_pair(*pair)
    assert np.array_equal(before.read(f"{FUSED}[3]"), up[3].T)
    assert np.array_equal(after.read_rows(f"{FUSED}[1]", 2, 5), (up[1].T + np.float32(1e-3))[2:5])
    result = audited(pair)
    assert any("stored as (experts, in, out) and are turned" in note for note in result["notes"])
    turned = rows_of(result, pair)[f"{FUSED}[3]"]
    plain = {f"e{n}.weight": np.ascontiguousarray(up[3].T + np.float32(n * 1e-3)) for n in (0, 1)}
    root = pair[0].parent
    for n, name in enumerate(("pt", "pu")):
        (root / name).mkdir()
        save_file({"e.weight": plain[f"e{n}.weight"]}, root / name / "model.safetensors")
    alone = (root / "pt", root / "pu")
    assert rows_of(audited(alone), alone)["e.weight"] == turned


def test_a_tensor_of_an_unknown_kind_is_the_first_of_all_reasons(report_pair: Pair) -> None:
    """What nobody knows to be quantized, or kept, is neither measured nor passed over in silence."""
    name, w = "model.layers.0.mlp.grouped.w1", draw((4, 16, 16))
    result = audited(report_pair({name: w}, {name: w + np.float32(1e-3)}, moved=False))
    share = 100 * w.size / (w.size + 256 + 128 + 16)
    first = result["verdict"]["reasons"][0]
    assert first == (
        f"{share:.1f} % of the weights stand in tensors that this audit does not measure; 1 of these 1 changed: '{name}'."
    )
    assert result["verdict"]["legs"]["weights"] == "unclear"
    assert result["findings"][0]["id"] == "not-measured"


def test_a_tensor_of_an_unknown_kind_beside_an_update_is_said_too(report_pair: Pair) -> None:
    result = audited(report_pair(both={"model.layers.0.mlp.grouped.w1": draw((4, 16, 16))}))
    assert "that this audit does not measure; none of these 1 changed" in result["verdict"]["reasons"][0]
    assert result["verdict"]["legs"]["weights"] != "no update"


def test_biases_convolutions_and_masks_are_known_to_be_kept(report_pair: Pair) -> None:
    kept = {
        "model.layers.0.mlp.experts.gate_up_proj_bias": draw((4, 32)),
        "model.layers.0.conv1d.weight": draw((8, 1, 4)),
    }
    result = audited(report_pair(both=kept))
    assert "not-measured" not in [f["id"] for f in result["findings"]]


def test_an_expert_with_the_name_of_another_tensor_is_refused(report_pair: Pair) -> None:
    both = {FUSED: draw((2, 32, 16)), f"{FUSED}[1]": draw((32, 16))}
    with pytest.raises(CheckpointError, match="must not have the name of one expert"):
        audited(report_pair(both=both))


def moe(seed: int) -> Tensors:
    """Gates, ups and downs of EXPERTS experts, (experts, out, in), and what a layer has beside them."""
    rng = np.random.default_rng(seed)
    shapes = {"gate": (EXPERTS, INNER, HIDDEN), "up": (EXPERTS, INNER, HIDDEN), "down": (EXPERTS, HIDDEN, INNER)}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def sides() -> tuple[Tensors, Tensors]:
    before, step = moe(0), moe(1)
    return before, {name: w + np.float32(0.1) * step[name] for name, w in before.items()}


def fused(w: Tensors) -> Tensors:
    return {FUSED: np.concatenate([w["gate"], w["up"]], axis=1), DOWN: w["down"]}


def unfused(w: Tensors) -> Tensors:
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return {f"model.layers.0.mlp.experts.{e}.{names[n]}.weight": x[e] for n, x in w.items() for e in range(EXPERTS)}


def test_128_experts_fused_are_those_that_are_not(report_pair: Pair) -> None:
    """Every expert is measured, fused or not, to the same numbers; the router is kept and named."""
    router = {ROUTER: draw((EXPERTS, HIDDEN))}
    before, after = sides()
    found = {}
    for kind, shape in (("fused", fused), ("unfused", unfused)):
        pair = report_pair(router | shape(before), router | shape(after))
        result = audited(pair)
        found[kind] = rows_of(result, pair)
        assert result["coverage"]["weights"] == 256 + 3 * EXPERTS * HIDDEN * INNER
        assert "not-measured" not in [f["id"] for f in result["findings"]]
        assert any(ROUTER in note and "stay in 16 bit" in note for note in result["notes"])
        for name in "tu":
            (pair[0].parent / name / "model.safetensors").unlink()
            (pair[0].parent / name).rmdir()
    assert len(found["fused"]) == 1 + 2 * EXPERTS
    assert len(found["unfused"]) == 1 + 3 * EXPERTS
    for e in (0, 77, EXPERTS - 1):
        own = f"model.layers.0.mlp.experts.{e}"
        assert found["fused"][f"{DOWN}[{e}]"] == found["unfused"][f"{own}.down_proj.weight"]
        flips = [
            sum(found["unfused"][f"{own}.{part}_proj.weight"][k][4] for part in ("gate", "up"))
            for k in range(2)  # rows of int4-row: one grid a row, so a fused tensor has those of its parts
        ]
        assert [row[4] for row in found["fused"][f"{FUSED}[{e}]"][:2]] == flips


def gguf_moe(path: Path, w: Tensors, kind: str) -> Path:
    gguf = pytest.importorskip("gguf", reason="what writes the files")
    writer = gguf.GGUFWriter(path, "qwen3moe")
    stored = gguf.GGMLQuantizationType[kind]
    for name, x in w.items():
        raw = gguf.quants.quantize(x, stored)
        writer.add_tensor(f"blk.0.ffn_{name}_exps.weight", raw, raw_dtype=stored)
    writer.add_tensor("blk.0.ffn_gate_inp.weight", draw((EXPERTS, HIDDEN)))
    writer.add_tensor("token_embd.weight", draw((8, HIDDEN)))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def gguf_sides(folder: Path, kind: str) -> tuple[Path, Path]:
    """Inner sizes of 32, as blocks of 32 need them."""
    rng = np.random.default_rng(0)
    before = {n: rng.normal(0, 0.02, (EXPERTS, 32, HIDDEN)).astype(np.float32) for n in ("gate", "up", "down")}
    after = {n: (w + rng.normal(0, 0.002, w.shape)).astype(np.float32) for n, w in before.items()}
    for name in "tu":
        (folder / name).mkdir()
    return gguf_moe(folder / "t" / "t.gguf", before, kind), gguf_moe(folder / "t" / "u.gguf", after, kind)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_128_experts_of_a_gguf_file_are_measured(kind: str, tmp_path: Path) -> None:
    files = gguf_sides(tmp_path, kind)
    result = audit_pair(*files, ["int4-row"], tmp_path / "out")
    assert result["coverage"]["weights"] == 3 * EXPERTS * 32 * HIDDEN
    assert result["coverage"]["tensors"] == 3 * EXPERTS
    assert any("'blk.0.ffn_gate_inp.weight'" in note and "stay in 16 bit" in note for note in result["notes"])
    before, _ = open_pair(*files)
    name = "blk.0.ffn_up_exps.weight"
    whole = before.read(f"{name}[5]")
    assert whole.shape == (32, HIDDEN)
    assert np.array_equal(before.read_rows(f"{name}[5]", 3, 9), whole[3:9])


def test_codes_of_128_experts_of_a_gguf_file_are_counted(tmp_path: Path) -> None:
    result = audit_pair(*gguf_sides(tmp_path, "Q4_0"), out=tmp_path / "out")
    (row,) = result["formats"]
    assert (row["format"], row["weights"]) == ("gguf:q4_0", 3 * EXPERTS * 32 * HIDDEN)
    assert row["code_flips"] > 0
    assert result["coverage"]["tensors"] == 3
    assert not any("measured expert by expert" in note for note in result["notes"])

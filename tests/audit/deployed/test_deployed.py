"""Pairs as they were really quantized: planted files whose decoded values, and so all ratios, are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import AuditResult, audit_pair
from unforgotten.audit.comparison.compare import compare
from unforgotten.audit.deployed import measure
from unforgotten.audit.deployed.told import Deployed, deployed_label
from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.verdict.gate import gate
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.domains.quantized_layers import CASES, NAME, save

Array = NDArray[Any]
Weights = Mapping[str, Array]
ROWS, COLUMNS, HEAD = 16, 64, 8
LAYER = "model.layers.0"
GGUF_NAMES = {
    f"{LAYER}.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    f"{LAYER}.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    f"{LAYER}.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}
Q, UP, DOWN = GGUF_NAMES
MIX = {Q: "Q8_0", UP: "Q4_0", DOWN: "F16"}
ROUNDINGS = 64 * 2.0**-53
"""Of sums of squares in float64, beside one of another order; far above the few roundings of these."""


def near(value: float | None, truth: float) -> bool:
    return value is not None and abs(value - truth) <= ROUNDINGS * max(1.0, abs(truth)) * ROWS * COLUMNS


def model(seed: int, *, update: float = 0.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    base = {name: rng.normal(size=(ROWS, COLUMNS)).astype(np.float32) for name in GGUF_NAMES}
    moved = np.random.default_rng(seed + 1)
    return {name: (w + update * moved.normal(size=w.shape)).astype(np.float32) for name, w in base.items()}


def saved(folder: Path, weights: Weights) -> Path:
    folder.mkdir(parents=True)
    norm = {f"{LAYER}.input_layernorm.weight": np.ones(COLUMNS, np.float32)}
    save_file({**weights, **norm}, folder / "model.safetensors")
    return folder


def permuted(w: Array) -> Array:
    """Return queries in the order of llama.cpp's converter."""
    return w.reshape(ROWS // HEAD, 2, HEAD // 2, COLUMNS).swapaxes(1, 2).reshape(w.shape)


def written(path: Path, weights: Weights, mix: Mapping[str, str], names: Mapping[str, str] = GGUF_NAMES) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, w in weights.items():
        kind = gguf.GGMLQuantizationType[mix[name]]
        rows = np.ascontiguousarray(permuted(w) if name == Q else w)
        writer.add_tensor(names[name], gguf.quants.quantize(rows, kind), raw_dtype=kind)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def decoded(w: Array, kind: str) -> Array:
    stored = gguf.GGMLQuantizationType[kind]
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(w, stored), stored), np.float64)


def audited(root: Path, before: Weights, after: Weights, mix: Mapping[str, str]) -> AuditResult:
    root.mkdir(exist_ok=True)
    files = written(root / "qt.gguf", before, mix), written(root / "qu.gguf", after, mix)
    pair = saved(root / "t", before), saved(root / "u", after)
    return audit_pair(*pair, ["int4-row"], root / "out", deployed=(str(files[0]), str(files[1])))


def deployed_of(result: AuditResult) -> Deployed:
    assert result["deployed"] is not None
    return result["deployed"]


def test_ratios_of_a_mix_are_those_of_what_gguf_decodes(tmp_path: Path) -> None:
    before, after = model(0), model(0, update=0.1)
    found = deployed_of(audited(tmp_path, before, after, MIX))
    q, q_new = ({name: decoded(w, MIX[name]) for name, w in side.items()} for side in (before, after))
    delta = {name: after[name].astype(np.float64) - before[name] for name in before}
    d = {name: q_new[name] - q[name] for name in before}
    dot = {name: float((d[name] * delta[name]).sum()) for name in before}
    squares = {name: float(np.square(delta[name]).sum()) for name in before}
    for row in found["tensors"]:
        assert row["type"] == MIX[row["name"]]
        assert near(row["gain"], dot[row["name"]] / squares[row["name"]])
    total = sum(squares.values())
    length = sum(float(np.square(x).sum()) for x in d.values())
    shift = sum(float(np.square(q[name] - before[name]).sum()) for name in before)
    assert near(found["gain"], sum(dot.values()) / total)
    assert near(found["cosine"], sum(dot.values()) / np.sqrt(total * length))
    assert near(found["length"], np.sqrt(length / total))
    assert near(found["base_shift"], np.sqrt(shift / total))
    assert found["value_changes"] == sum(int((x != 0).sum()) for x in d.values())
    assert sum("RoPE" in note or "llama.cpp" in note for note in found["notes"]) == 1
    assert any("33.3 %" in note and "F16" in note and DOWN in note for note in found["notes"])


def test_float16_keeps_an_update_and_equal_files_none(tmp_path: Path) -> None:
    before, after = model(0), model(0, update=0.1)
    found = deployed_of(audited(tmp_path / "a", before, after, MIX))
    gains = {row["name"]: row["gain"] for row in found["tensors"]}
    rounding = 2.0**-11 * float(max(np.abs(w).max() for w in (*before.values(), *after.values()))) * 2
    assert abs((gains[DOWN] or 0) - 1) <= rounding / 0.1  # |D - delta| <= rounding at each weight, |delta| about 0.1
    same = written(tmp_path / "one.gguf", before, MIX), written(tmp_path / "two.gguf", before, MIX)
    result = audit_pair(tmp_path / "a" / "t", tmp_path / "a" / "u", ["int4-row"], deployed=(str(same[0]), str(same[1])))
    found = deployed_of(result)
    assert found["gain"] == 0
    assert found["cosine"] is None
    assert found["value_changes"] == 0
    row = answer(result).rows[-1]
    assert (row.format, row.word) == ("deployed (F16 1, Q4_0 1, Q8_0 1)", "swallowed")
    ended = gate(result, ("swallowed",))
    assert ended.code == 1
    assert deployed_label(found) in ended.why


def test_distance_to_ours_is_0_where_both_round_alike_and_none_without_ours(tmp_path: Path) -> None:
    mix = {Q: "Q8_0", UP: "Q4_0", DOWN: "BF16"}
    found = deployed_of(audited(tmp_path, model(0), model(0, update=0.1), mix))
    distances = {row["type"]: (row["ours"], row["distance"]) for row in found["types"]}
    own = {kind: round_trip(model(0)[name], format_named(kind.lower())) for name, kind in mix.items() if kind != "BF16"}
    for name, kind in mix.items():
        if kind == "BF16":
            assert distances[kind] == (None, None)
            continue
        theirs, w = decoded(model(0)[name], kind), model(0)[name].astype(np.float64)
        truth = np.linalg.norm(theirs - own[kind]) / np.linalg.norm(own[kind] - w)
        assert distances[kind][0] == kind.lower()
        assert near(distances[kind][1], float(truth))
    assert "of q8_0's own" in found["notes"][0]


def test_file_of_our_own_rounding_has_the_gain_of_our_format(tmp_path: Path) -> None:
    before, after = model(0), model(0, update=0.1)
    mix = dict.fromkeys(MIX, "Q4_0")
    files = [str(written(tmp_path / f"q{i}.gguf", side, mix)) for i, side in enumerate((before, after))]
    pair = saved(tmp_path / "t", before), saved(tmp_path / "u", after)
    result = audit_pair(*pair, ["q4_0"], deployed=(files[0], files[1]))
    found, own = deployed_of(result), result["formats"][0]
    assert (own["format"], own["grid"]) == ("q4_0", "adaptive")
    assert [row["distance"] for row in found["types"]] == [0.0]
    assert found["value_changes"] == own["value_changes"]
    assert near(found["gain"], own["gain"] or 0.0)
    assert near(found["cosine"], own["cosine"] or 0.0)


def tiled_file(folder: Path, weights: Weights, ending: str, config: Mapping[str, Any], plain: Weights) -> Path:
    """Write float8 codes and scales of tiles of 16 x 32, as compressed-tensors or DeepSeek name them, and `plain` as it is."""
    fmt = format_named("fp8-b16x32")
    tensors: dict[str, Array] = dict(plain)
    for name, w in weights.items():
        codes, grid = quantize(w, fmt)
        tensors[name] = np.asarray(fmt.levels, np.float32)[codes].astype(ml_dtypes.float8_e4m3fn)
        tensors[name.removesuffix(".weight") + ending] = grid.scale.reshape(-(-w.shape[0] // 16), -1)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


BLOCK = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32], "symmetric": True}
DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 32]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": BLOCK}},
}


def tiled_pair(
    tmp_path: Path, shape: tuple[int, int], ending: str, config: Mapping[str, Any], plain: Weights
) -> AuditResult:
    """Audit matrices beside their files, of which that of the unlearned model has `plain`, too."""
    rng = np.random.default_rng(0)
    before = {name: rng.normal(size=shape).astype(np.float32) for name in GGUF_NAMES}
    after = {name: (w + 0.05 * rng.normal(size=w.shape)).astype(np.float32) for name, w in before.items()}
    target = tiled_file(tmp_path / "q0", before, ending, config, {})
    unlearned = tiled_file(tmp_path / "q1", after, ending, config, plain)
    files = str(target), str(unlearned)
    return audit_pair(saved(tmp_path / "t", before), saved(tmp_path / "u", after), ["fp8-b16x32"], deployed=files)


@pytest.mark.parametrize(
    ("ending", "config"), [(".weight_scale_inv", DEEPSEEK), (".weight_scale", COMPRESSED)], ids=["deepseek", "ct"]
)
def test_file_of_float8_tiles_has_the_gain_of_our_format(
    ending: str, config: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of tiles are cut at the edge; of our own values a sample of whole tiles is taken, which fewer rows would not be."""
    monkeypatch.setattr(measure, "OURS_WEIGHTS", 20)
    result = tiled_pair(tmp_path, (40, 70), ending, config, {})
    found, own = deployed_of(result), result["formats"][0]
    assert (own["format"], own["grid"]) == ("fp8-b16x32", "adaptive")
    assert [(row["ours"], row["distance"]) for row in found["types"]] == [("fp8-b16x32", 0.0)]
    assert found["value_changes"] == own["value_changes"]
    assert abs((found["gain"] or 0.0) - (own["gain"] or 1.0)) <= ROUNDINGS * 40 * 70
    assert abs((found["cosine"] or 0.0) - (own["cosine"] or 1.0)) <= ROUNDINGS * 40 * 70


@pytest.mark.parametrize("factor", [1.0, 1.01, 3.0])
def test_norms_of_another_model_are_named_where_no_scales_explain_them(factor: float, tmp_path: Path) -> None:
    """The models' norms are 1 (`saved`)."""
    norm = {f"{LAYER}.input_layernorm.weight": np.full(COLUMNS, factor, np.float32)}
    notes = deployed_of(tiled_pair(tmp_path, (96, COLUMNS), ".weight_scale", COMPRESSED, norm))["notes"]
    told = [note for note in notes if "norms are others" in note]
    assert bool(told) == (factor == 3.0)
    assert all("by up to 200%" in note and f"{LAYER}.input_layernorm.weight" in note for note in told)


@pytest.mark.parametrize("nested", [False, True])
def test_file_of_bitsandbytes_is_our_format_with_and_without_double_quantization(nested: bool, tmp_path: Path) -> None:
    """Its mean of absmaxes is a sum in float32, ours is exact: values differ by that alone, far less than by 8 bits."""
    torch = pytest.importorskip("torch", reason="bitsandbytes needs torch")
    functional = pytest.importorskip("bitsandbytes.functional", reason="writes the file")
    before, after = model(0), model(0, update=0.1)
    files = []
    for side, weights in (("t", before), ("u", after)):
        tensors: dict[str, Array] = {}
        for name, w in weights.items():
            rows = torch.from_numpy(w)
            packed, state = functional.quantize_4bit(rows, blocksize=64, quant_type="nf4", compress_statistics=nested)
            tensors |= {f"{name}.{key}": value.numpy() for key, value in state.as_dict(packed=True).items()}
            tensors[name] = packed.numpy()
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        files.append(str(save(tmp_path / f"q{side}", config, tensors)))
    ours = "nf4-b64-dq" if nested else "nf4-b64"
    pair = saved(tmp_path / "t", before), saved(tmp_path / "u", after)
    result = audit_pair(*pair, [ours], deployed=(files[0], files[1]))
    found, own = deployed_of(result), result["formats"][0]
    (row,) = found["types"]
    assert row["ours"] == ours
    values = np.concatenate([round_trip(w, format_named(ours)) for w in before.values()]).astype(np.float64)
    shift = np.linalg.norm(values - np.concatenate(list(before.values())))
    mean_off = nested * ROWS * 2.0**-24 * float(np.linalg.norm(values))  # as many absmaxes, so additions, as rows
    assert (row["distance"] or 0.0) <= mean_off / float(shift)
    moved = np.sqrt(sum(float(np.square(after[name].astype(np.float64) - w).sum()) for name, w in before.items()))
    assert abs((found["gain"] or 0.0) - (own["gain"] or 1.0)) <= 2 * mean_off / moved + ROUNDINGS * ROWS * COLUMNS


EMBEDDING, NO_HEAD = "model.embed_tokens.weight", "gguf:Q4_0"


@pytest.mark.parametrize("stored", ["Q8_0", "F16"])
def test_an_embedding_is_measured_where_both_files_quantize_it(stored: str, tmp_path: Path) -> None:
    """Rows of 64: the embedding, which is the head too, is Q6_K in Q4_0, and Q8_0 where 256 do not fit."""
    names = {
        f"{LAYER}.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        EMBEDDING: "token_embd.weight",
        DOWN: GGUF_NAMES[DOWN],
    }
    rng = np.random.default_rng(5)
    before = {name: rng.normal(size=(ROWS, COLUMNS)).astype(np.float32) for name in names}
    after = {name: (w + 0.1 * rng.normal(size=w.shape)).astype(np.float32) for name, w in before.items()}
    mix = {**dict.fromkeys(names, "Q4_0"), EMBEDDING: stored}
    files = [str(written(tmp_path / f"q{i}.gguf", side, mix, names)) for i, side in enumerate((before, after))]
    pair = saved(tmp_path / "t", before), saved(tmp_path / "u", after)
    result = audit_pair(*pair, [NO_HEAD], deployed=(files[0], files[1]))
    found, own = deployed_of(result), result["formats"][0]
    measured = [row["name"] for row in found["tensors"]]
    assert (EMBEDDING in measured) == (stored == "Q8_0")
    assert own["weights"] == 3 * ROWS * COLUMNS
    assert (found["value_changes"] == own["value_changes"]) == (stored == "Q8_0")
    if stored == "Q8_0":
        assert near(found["gain"], own["gain"] or 0.0)


def test_page_and_file_hold_it(tmp_path: Path) -> None:
    result = audited(tmp_path, model(0), model(0, update=0.1), MIX)
    kept = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert kept["deployed"] == result["deployed"]
    assert deployed_label(deployed_of(result)) in (tmp_path / "out" / "audit.html").read_text("utf-8")


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind != "mxfp4"])
def test_a_pair_of_decoded_values_has_gain_1_in_every_layout(kind: str, tmp_path: Path) -> None:
    cases = [CASES[kind](seed) for seed in (0, 1)]
    turn = cases[0].config["quant_method"] in ("gptq", "awq")
    paths = []
    for seed, case in enumerate(cases):
        w = np.ascontiguousarray(case.values.T if turn else case.values, np.float32)
        paths.append(saved(tmp_path / f"m{seed}", {f"{NAME}.weight": w}))
    files = [str(save(tmp_path / f"q{seed}", case.config, case.tensors)) for seed, case in enumerate(cases)]
    result = audit_pair(paths[0], paths[1], ["int4-row"], deployed=(files[0], files[1]))
    found = deployed_of(result)
    assert near(found["gain"], 1.0)
    assert found["base_shift"] == 0
    assert len(found["tensors"]) == 1


def test_experts_of_one_tensor_are_matched_one_by_one(tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.gate_up_proj"
    cases = [CASES["mxfp4"](seed) for seed in (0, 1)]
    count = next(len(w) for key, w in cases[0].tensors.items() if key.endswith("_blocks"))
    paths, files = [], []
    for seed, case in enumerate(cases):
        w = case.values.reshape(count, -1, case.values.shape[-1])
        paths.append(saved(tmp_path / f"m{seed}", {name: np.ascontiguousarray(w, np.float32)}))
        tensors = {key.replace(NAME, name): w for key, w in case.tensors.items()}
        files.append(str(save(tmp_path / f"q{seed}", case.config, tensors)))
    found = deployed_of(audit_pair(paths[0], paths[1], ["int4-row"], deployed=(files[0], files[1])))
    assert [row["name"] for row in found["tensors"]] == [f"{name}[{e}]" for e in range(count)]
    assert near(found["gain"], 1.0)
    assert found["base_shift"] == 0


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_channels_that_are_scaled_are_said(spread: float, tmp_path: Path) -> None:
    scales = 1 + spread * np.where(np.arange(COLUMNS) % 2, 1, -1)
    scaled = [{n: (w * scales).astype(np.float32) for n, w in model(0, update=x).items()} for x in (0.0, 0.1)]
    files = [str(written(tmp_path / f"q{i}.gguf", weights, MIX)) for i, weights in enumerate(scaled)]
    pair = saved(tmp_path / "t", model(0)), saved(tmp_path / "u", model(0, update=0.1))
    found = deployed_of(audit_pair(*pair, ["int4-row"], deployed=(files[0], files[1])))
    assert any("scaled one by one" in note for note in found["notes"]) == bool(spread)


@pytest.mark.parametrize(("update", "said"), [(0.0005, True), (1.0, False)])
def test_quantized_models_that_lost_the_update_are_a_finding(update: float, said: bool, tmp_path: Path) -> None:
    mix = dict.fromkeys(MIX, "Q4_0")
    before = {name: w + np.sign(w) for name, w in model(0).items()}
    small = {name: np.abs(w) < 1.5 for name, w in before.items()}  # the largest of a block, its scale, stays
    after = {name: (w + update * small[name] * np.sign(w)).astype(np.float32) for name, w in before.items()}
    result = audited(tmp_path, before, after, mix)
    label = deployed_label(deployed_of(result))
    found = [row for row in result["findings"] if row["format"] == label]
    assert (len(found) == 1) == said
    for file in ("audit.sarif", "audit.junit.xml"):
        assert (label in (tmp_path / "out" / file).read_text("utf-8")) == said
    assert all(row["id"] == "swallowed" and "in the quantized models themselves" in row["sentence"] for row in found)


def test_a_comparison_has_a_row_of_it(tmp_path: Path) -> None:
    result = audited(tmp_path, model(0), model(0, update=0.1), MIX)
    rows = compare([tmp_path / "out"])["rankings"][0]["rows"]
    (row,) = [row for row in rows if row["format"].startswith("deployed")]
    found = deployed_of(result)
    assert row["format"] == deployed_label(found)
    assert (row["gain"], row["word"]) == (found["gain"], answer(result).rows[-1].word)
    assert (row["score"], row["why"]) == (None, "no benchmark was measured in it")


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    before, after = model(0), model(0, update=0.1)
    t, u = saved(tmp_path / "t", before), saved(tmp_path / "u", after)
    good = str(written(tmp_path / "good.gguf", before, MIX))
    plain = str(written(tmp_path / "plain.gguf", before, dict.fromkeys(MIX, "F16")))
    other = {name: f"blk.0.unknown{i}.weight" for i, name in enumerate(before)}
    strange = str(written(tmp_path / "strange.gguf", before, dict.fromkeys(MIX, "Q8_0"), other))
    short = {name: w[:, :32] for name, w in before.items() if name != Q}
    cut = str(written(tmp_path / "cut.gguf", short, MIX))
    for files, rule in {
        (good, good): "must name two quantized models",
        (good, plain): "must be quantized",
        (good, str(u)): "must be quantized",
        (good, strange): "must hold matrices of the model",
        (good, cut): "must have the model's shape",
    }.items():
        with pytest.raises(ValueError, match=rule) as refused:
            audit_pair(t, u, ["int4-row"], deployed=files)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="--deployed must stand beside models that are not quantized"):
        audit_pair(Path(good), written(tmp_path / "two.gguf", after, MIX), ["int4-row"], deployed=(good, plain))


def test_values_are_exact_in_bfloat16(tmp_path: Path) -> None:
    before = {name: w.astype(ml_dtypes.bfloat16).astype(np.float32) for name, w in model(0).items()}
    after = {name: w.astype(ml_dtypes.bfloat16).astype(np.float32) for name, w in model(0, update=0.1).items()}
    found = deployed_of(audited(tmp_path, before, after, {Q: "BF16", UP: "Q8_0", DOWN: "BF16"}))
    gains = {row["name"]: row["gain"] for row in found["tensors"]}
    assert gains[Q] == gains[DOWN] == 1.0


def test_command_line_takes_two_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unforgotten.cli import app

    before, after = model(0), model(0, update=0.1)
    files = [str(written(tmp_path / f"{name}.gguf", before, MIX)) for name in ("one", "two")]
    pair = [str(saved(tmp_path / "t", before)), str(saved(tmp_path / "u", after))]
    rest = ["--formats", "int8-row", "--fail-on", "swallowed", "--out", str(tmp_path / "out"), "--quiet"]
    assert app(["audit", *pair, "--deployed", *files, *rest], standalone_mode=False) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "deployed (F16 1, Q4_0 1, Q8_0 1)" in told
    assert "Distance of the deployed target from our own format of that name" in told

"""`import unforgotten`: three functions and a version, for what a caller has at hand; and nothing heavy until they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import unforgotten
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.nearest import examples, nearest
from unforgotten.theory.laws import update
from unforgotten.theory.laws.absmax import observed_absmax
from unforgotten.theory.laws.block_law import block_law
from unforgotten.theory.laws.densities import empirical

FORMATS = ["int4-g64", "int8-row"]
HEAVY = {"numpy", "scipy", "torch", "rich", "typer", "unforgotten.theory", "unforgotten.audit", "unforgotten.library"}


def weights() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (32, 64)).astype(np.float32)
    return w, (w + rng.normal(0, 1e-3, w.shape)).astype(np.float32)


def states() -> tuple[dict[str, Any], dict[str, Any]]:
    w, moved = weights()
    return tuple({"layers.0.q.weight": x, "norm.weight": np.ones(8, np.float32)} for x in (w, moved))  # type: ignore[return-value]


def test_importing_it_loads_nothing() -> None:
    code = "import sys, unforgotten; unforgotten.__doc__; dir(unforgotten); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_it_offers_what_it_says_and_no_more() -> None:
    assert unforgotten.__version__ == version("unforgotten")
    assert {"audit_pair", "survival", "verdict", "__version__"} <= set(dir(unforgotten))
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        _ = unforgotten.audits


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_survival_takes_arrays_of_any_float_dtype_and_a_name(dtype: Any) -> None:
    w, moved = (x.astype(dtype) for x in weights())
    found = unforgotten.survival(w, moved, "int4-g64")
    expected = update.survival(w.astype(np.float32), moved.astype(np.float32), format_named("int4-g64"), "adaptive")
    assert found == expected
    assert unforgotten.survival(w, moved, format_named("int4-g64"), "fixed") != found


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_survival_takes_torch_tensors_of_any_float_dtype(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    w, moved = (torch.from_numpy(x).to(kind) for x in weights())
    parameter = torch.nn.Parameter(w) if w.dtype.is_floating_point else w
    found = unforgotten.survival(parameter, moved, "int8-row")
    assert found == unforgotten.survival(w.float().numpy(), moved.float().numpy(), "int8-row")


def test_survival_of_integers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w must be of a float dtype, got w\.dtype=int64"):
        unforgotten.survival(np.ones((2, 64), np.int64), np.ones((2, 64), np.int64), "int8-row")


@pytest.mark.parametrize("mode", ["Adaptive", "", "fix", None])
def test_an_unknown_mode_is_refused_everywhere(mode: Any) -> None:
    w, moved = weights()
    fmt = format_named("int4-row")
    rule = "mode must be one of adaptive, fixed"
    with pytest.raises(ValueError, match=rule):
        update.survival(w, moved, fmt, mode)
    with pytest.raises(ValueError, match=rule):
        unforgotten.survival(w, moved, "int4-row", mode)
    law = observed_absmax(np.abs(w).max(axis=1), w.shape[1], nodes=4)
    with pytest.raises(ValueError, match=rule):
        block_law(fmt, empirical(w.astype(np.float64), 16), law, 1e-3, mode)


def test_rows_of_an_unknown_mode_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="rows of a run need unforgotten[experiments]")
    from unforgotten.experiments.arms.arithmetic import autocast
    from unforgotten.experiments.evaluation import weights_rows

    found = unforgotten.survival(*weights(), "int4-row")
    with pytest.raises(ValueError, match="mode must be one of adaptive, fixed"):
        weights_rows(found, "Adaptive")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be one of none, bf16"):
        autocast("BF16", torch.device("cpu"))  # type: ignore[arg-type]


def test_state_dicts_give_what_their_files_give(tmp_path: Path) -> None:
    for name, state in zip("tu", states(), strict=True):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    files = unforgotten.audit_pair(str(tmp_path / "t"), tmp_path / "u", FORMATS)
    memory = unforgotten.audit_pair(*states(), FORMATS, tmp_path / "out")
    assert memory["formats"] == files["formats"]
    assert memory["findings"] == files["findings"]
    assert (memory["target"]["source"], memory["unlearned"]["source"]) == (
        "target (in memory)",
        "unlearned (in memory)",
    )
    assert (tmp_path / "out/audit.html").exists()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_models_of_torch_are_audited(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    before, after = (torch.nn.Sequential(torch.nn.Linear(64, 32)).to(getattr(torch, dtype)) for _ in range(2))
    found = unforgotten.audit_pair(before, after, ["int8-row"])
    stored = "float32" if dtype == "float64" else dtype
    assert found["target"]["dtypes"] == [stored]
    assert found["coverage"] == {"tensors": 1, "weights": 2048, "kept": 1, "kept_changed": ["0.bias"]}


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "uint8", "int8", "int32"])
@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
def test_codes_in_memory_are_refused_as_their_files_are(dtype: str, scale: str, tmp_path: Path) -> None:
    """Codes say nothing without their scales: where the scale alone carries the update, they are equal."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    codes = torch.arange(64 * 32).reshape(32, 64).remainder(100).float().to(getattr(torch, dtype))
    sides = [{"layers.0.q.weight": codes, f"layers.0.q.{scale}": torch.full((1,), s)} for s in (1.0, 0.5)]
    paths = [tmp_path / f"{side}.safetensors" for side in ("target", "unlearned")]
    for path, state in zip(paths, sides, strict=True):
        save_torch(state, path)
    said = []
    pairs: list[list[Any]] = [paths, sides]
    for pair in pairs:
        with pytest.raises(ValueError, match="not quantized already") as refused:
            unforgotten.audit_pair(pair[0], pair[1], FORMATS)
        said.append(str(refused.value).partition("target.safetensors: ")[2])
    rule = "must be BF16, F16, F32 (not quantized already)"
    assert said == [f"tensor 'layers.0.q.weight' {rule}, got {dtype}"] * 2


def test_scales_of_float8_in_memory_are_kept_as_their_files_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    sides = [
        {"a.weight": torch.from_numpy(w), "a.input_scale": torch.full((3, 2), s).t().to(torch.float8_e4m3fn)}
        for w, s in zip(weights(), (1.0, 2.0), strict=True)
    ]
    paths = [tmp_path / f"{side}.safetensors" for side in ("target", "unlearned")]
    for path, state in zip(paths, sides, strict=True):
        save_torch({name: tensor.contiguous() for name, tensor in state.items()}, path)
    memory = unforgotten.audit_pair(sides[0], sides[1], FORMATS)
    files = unforgotten.audit_pair(paths[0], paths[1], FORMATS)
    assert memory["target"]["dtypes"] == files["target"]["dtypes"] == ["float32", "float8_e4m3fn"]
    assert memory["coverage"] == files["coverage"]
    assert memory["coverage"]["kept_changed"] == ["a.input_scale"]


def test_a_float8_that_no_file_here_has_is_refused() -> None:
    torch = pytest.importorskip("torch")
    state = {"a.weight": torch.ones(32, 64).to(torch.float8_e4m3fnuz)}
    with pytest.raises(
        ValueError, match=r"a\.weight must be of a dtype that safetensors has, got torch.float8_e4m3fnuz"
    ):
        unforgotten.audit_pair(state, state, FORMATS)


@pytest.mark.parametrize("bad", [{}, 7, None, [1.0]])
def test_what_is_no_model_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="target must be a path, a state dict or a model"):
        unforgotten.audit_pair(bad, states()[1], FORMATS)


def test_texts_need_models_that_are_paths(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n")
    with pytest.raises(ValueError, match="must have models that are paths"):
        unforgotten.audit_pair(*states(), FORMATS, texts=tmp_path / "texts.txt")


def test_the_verdict_of_given_items_is_that_of_the_rule() -> None:
    rng = np.random.default_rng(0)
    target, gone = 90 + 5 * rng.random(40), 10 + 5 * rng.random(40)
    items = {"int4-g64": {"M1": (target, gone, target, gone + 0.9 * (target - gone))}}
    back = unforgotten.verdict(items)
    assert back["overall"] == "undone"
    away = unforgotten.verdict({"int4-g64": {"M1": (target, gone, target, gone), "M2": (target, gone, target, gone)}})
    assert away["overall"] == "survives"
    few = unforgotten.verdict({"int4-g64": {"M1": tuple(x[:3] for x in (target, gone, target, gone))}})
    assert few["overall"] == "undecided"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({}, "at least one format"),
        ({"f": {"accuracy": [[1, 2]] * 4}}, "metric must be one of M1, M2, forget_loss"),
        ({"f": {"M1": [[1, 2]] * 3}}, "four lists"),
        ({"f": {"M1": [[1]] * 4}}, "two|2"),
    ],
)
def test_items_that_break_a_rule_are_refused(items: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unforgotten.verdict(items)


@pytest.mark.parametrize(
    ("asked", "known"),
    [("int4g64", "int4-g64"), ("Q4_K_M", "q4_k"), ("NF4", "nf4-b64"), ("int4-group64", "int4-g64"), ("fp8", "fp8-row")],
)
def test_the_nearest_format_is_a_known_one(asked: str, known: str) -> None:
    assert nearest(asked) == known


def test_every_example_of_a_format_is_one() -> None:
    for name in examples():
        assert format_named(name).name == name
    for asked in ("", "?", "x" * 1000, "int" * 50):
        assert format_named(nearest(asked))

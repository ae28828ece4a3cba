"""A mix through the audit: each tensor in its own format, embeddings among them, and sums over all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import audit_pair, open_checkpoint, weights_leg
from unforgotten.audit.mixes.mix import check_name, formats_of, is_mix
from unforgotten.audit.weights.leg import Setting
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.update import GRID_MODES, add, survival

Tensors = dict[str, NDArray[Any]]
NAME = "gguf:Q4_K_M"
SUMS = 40_000 * 2.0**-53
"""Of a ratio of sums of at most 40,000 terms each in float64, added in another order."""
SHAPES = {
    "model.embed_tokens.weight": (40, 64),
    **{f"model.layers.{i}.self_attn.v_proj.weight": (32, 64) for i in range(3)},
    **{f"model.layers.{i}.mlp.down_proj.weight": (64, 256) for i in range(3)},
    **{f"model.layers.{i}.input_layernorm.weight": (64,) for i in range(3)},
}
TYPES = {
    "model.embed_tokens.weight": "q8_0",
    **{f"model.layers.{i}.self_attn.v_proj.weight": kind for i, kind in enumerate(("q5_0", "q5_0", "q8_0"))},
    **{f"model.layers.{i}.mlp.down_proj.weight": kind for i, kind in enumerate(("q4_k", "q4_k", "q6_k"))},
}
"""Of three layers no eighth is a whole one, so the third is the first with more bits."""


@pytest.fixture(scope="module")
def weights() -> tuple[Tensors, Tensors]:
    rng = np.random.default_rng(0)
    start = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in SHAPES.items()}
    return start, {name: w + rng.normal(0, 1e-3, w.shape).astype(np.float32) for name, w in start.items()}


@pytest.fixture(scope="module")
def pair(weights: tuple[Tensors, Tensors], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("mix")
    for side, content in zip("tu", weights, strict=True):
        (root / side).mkdir()
        save_file(content, root / side / "model.safetensors")
    return root / "t", root / "u"


def test_each_tensor_is_measured_in_its_own_format(weights: tuple[Tensors, Tensors], pair: tuple[Path, Path]) -> None:
    target, unlearned = (open_checkpoint(path) for path in pair)
    assert {name: fmt.name for name, fmt in formats_of(NAME, SHAPES, ()).items()} == TYPES
    leg = weights_leg(target, unlearned, [NAME, "int4-g64"])
    for grid in GRID_MODES:
        expected = add(survival(weights[0][n], weights[1][n], format_named(k), grid) for n, k in TYPES.items())
        got = leg.totals[Setting(NAME, grid)]
        assert (got.weights, got.code_flips, got.value_changes) == (
            expected.weights,
            expected.code_flips,
            expected.value_changes,
        )
        assert got.gain == pytest.approx(expected.gain, rel=SUMS)
    plain = weights_leg(target, unlearned, ["int4-g64"]).totals[Setting("int4-g64", "adaptive")]
    assert leg.totals[Setting("int4-g64", "adaptive")] == plain  # the embedding is in the mix alone
    assert [t.name for t in leg.vocabulary] == ["model.embed_tokens.weight"]


def test_processes_share_a_mix(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFORGOTTEN_SIMD", "scalar")
    target, unlearned = (open_checkpoint(path) for path in pair)
    shared, alone = (weights_leg(target, unlearned, [NAME, "int4-g64"], jobs=jobs) for jobs in (2, 1))
    assert shared.totals == alone.totals
    assert alone.computed["path"] == "scalar"
    assert alone.computed["ways"]["q4_k"] == {"searched": 2}
    monkeypatch.setenv("UNFORGOTTEN_SIMD", "numpy")
    by_numpy = weights_leg(target, unlearned, [NAME, "int4-g64"])
    for setting, total in by_numpy.totals.items():
        assert total.code_flips == alone.totals[setting].code_flips


def test_an_audit_says_where_the_embedding_is_measured(pair: tuple[Path, Path]) -> None:
    alone, beside = (audit_pair(*pair, formats) for formats in ((NAME,), (NAME, "int4-g64")))
    assert alone["coverage"] == beside["coverage"]
    assert alone["coverage"]["weights"] == 3 * (
        32 * 64 + 64 * 256
    )  # of the matrices that it counts, in any order of formats
    assert alone["storage"] == beside["storage"]
    rows = {row["format"]: row["weights"] for row in beside["formats"] if row["grid"] == "adaptive"}
    assert rows[NAME] - rows["int4-g64"] == 40 * 64

    def told(result: Any) -> str:
        return next(s for s in result["verdict"]["reasons"] if s.startswith("Also changed"))

    assert "3 of the 3 tensors that quantizers leave alone" in told(alone)
    assert "4 of the 4" in told(beside)
    assert f"{NAME} quantizes 'model.embed_tokens.weight'" in told(beside)


def test_names() -> None:
    assert is_mix(NAME)
    assert not is_mix("gguf:q4_k")
    check_name(NAME)
    check_name("q4_0")
    with pytest.raises(ValueError, match="the nearest is 'gguf:Q4_K_M'"):
        check_name("q4_k_m")
    with pytest.raises(ValueError, match=r"gguf:Q4_K_M, .*got format='gguf:Q2_K'"):
        check_name("gguf:Q2_K")

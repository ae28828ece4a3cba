"""The weights leg: its numbers against theory called directly and against bitsandbytes, dead zones, layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.stats import chi2

from unforgotten.audit import DEFAULT_FORMATS, audit_pair, open_checkpoint, weights_leg
from unforgotten.audit.weights.leg import Setting, gain_stderr, value_precision
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.update import GRID_MODES, add, survival
from unforgotten.verification.agreement import assert_agree

Tensors = dict[str, NDArray[Any]]
BF16 = ml_dtypes.bfloat16
STD = 0.02  # of the weights of a 7B Llama
LR = 1e-5
EDGE = 2.0**-8  # the dead zone of bfloat16 under steps of at most LR
STEPS = 20
SIGNS = np.array([-1, 1], np.float32)
SHAPES = {
    "layers.0.q_proj.weight": (96, 160),
    "layers.0.up_proj.weight": (128, 100),  # rows that no block size divides
    "layers.1.q_proj.weight": (33, 65),  # nor the tensor
}


def base(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, STD, shape).astype(BF16) for name, shape in SHAPES.items()}


def trained(start: Tensors, *, master: type) -> Tensors:
    """Steps of at most LR with a drift, as AdamW takes them, on weights that are kept as `master`; saved in bf16."""
    rng = np.random.default_rng(1)
    end: Tensors = {}
    for name, w in start.items():
        w = w.astype(np.float32)
        drift = rng.choice(SIGNS, w.shape)
        for _ in range(STEPS):
            step = LR * drift * rng.uniform(0.5, 1, w.shape)
            w = (w + step).astype(np.float32).astype(master).astype(np.float32)
        end[name] = w
    return end


def save(folder: Path, content: Tensors) -> Path:
    folder.mkdir()
    save_file(content, folder / "model.safetensors")
    return folder


def save_sharded(folder: Path, content: Tensors) -> Path:
    """One tensor a shard, in an order of shards that is not the order of names."""
    folder.mkdir()
    shard_of = {name: f"model-{i}.safetensors" for i, name in enumerate(reversed(content))}
    for name, shard in shard_of.items():
        save_file({name: content[name]}, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    start = base()
    return save(root / "t", start), save(root / "u", trained(start, master=np.float32))


def test_numbers_are_those_of_survival(pair: tuple[Path, Path]) -> None:
    target, unlearned = (open_checkpoint(p) for p in pair)
    leg = weights_leg(target, unlearned, DEFAULT_FORMATS)
    settings = [Setting(f, g) for f in DEFAULT_FORMATS for g in GRID_MODES]
    assert list(leg.totals) == settings
    assert [t.name for t in leg.tensors] == sorted(SHAPES)
    for s in settings:
        direct = {n: survival(target.read(n), unlearned.read(n), format_named(s.format), s.grid) for n in SHAPES}
        for tensor in leg.tensors:
            assert_agree(tensor.survival[s], direct[tensor.name])
        assert_agree(leg.totals[s], add(direct.values()))
    assert leg.unchanged_fraction == leg.totals[settings[0]].unchanged_fraction


def test_sharded_equals_single(pair: tuple[Path, Path], tmp_path: Path) -> None:
    t, u = (open_checkpoint(p) for p in pair)
    shards = save_sharded(tmp_path / "s", {n: np.array(u.read(n)) for n in SHAPES})
    assert weights_leg(t, open_checkpoint(shards), ["nf4-b64"]) == weights_leg(t, u, ["nf4-b64"])
    single, sharded = audit_pair(*pair, ["nf4-b64"]), audit_pair(pair[0], shards, ["nf4-b64"])
    for part in (single, sharded):
        part["unlearned"]["source"] = part["unlearned"]["sha256"] = ""
    assert single == sharded


def test_file_equals_its_directory(pair: tuple[Path, Path]) -> None:
    t, u = pair
    files = t / "model.safetensors", u / "model.safetensors"
    whole, by_file = audit_pair(t, u, ["int8-row"]), audit_pair(*files, ["int8-row"])
    assert by_file["unlearned"]["sha256"] == whole["unlearned"]["sha256"]
    assert by_file["formats"] == whole["formats"]


def test_format_named_twice_counts_once(pair: tuple[Path, Path]) -> None:
    t, u = (open_checkpoint(p) for p in pair)
    twice = weights_leg(t, u, ["int8-row", "int4-row", "int8-row"])
    assert [s.format for s in twice.totals] == ["int8-row", "int8-row", "int4-row", "int4-row"]


def test_progress_names_every_tensor(pair: tuple[Path, Path]) -> None:
    seen: list[tuple[str, int, int]] = []
    t, u = (open_checkpoint(p) for p in pair)
    weights_leg(t, u, ["int8-row"], lambda name, done, total: seen.append((name, done, total)))
    assert seen == [(name, i, len(SHAPES)) for i, name in enumerate(sorted(SHAPES))]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_are_those_of_bitsandbytes(kind: str, pair: tuple[Path, Path]) -> None:
    torch = pytest.importorskip("torch", reason="bitsandbytes needs torch")
    functional = pytest.importorskip("bitsandbytes.functional", reason="the reference for nf4 and fp4")
    t, u = (open_checkpoint(p) for p in pair)

    def quantized(w: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        tensor = torch.from_numpy(w.astype(np.float32))
        packed, state = functional.quantize_4bit(tensor, blocksize=64, quant_type=kind)
        byte = packed.numpy().reshape(-1)
        codes = np.stack([byte >> 4, byte & 15], axis=1).reshape(-1)[: w.size]
        state.shape = (w.size, 1)  # some CPUs decode rows that no block divides with other scales
        return codes, functional.dequantize_4bit(packed.reshape(-1, 1), state).numpy()

    leg = weights_leg(t, u, [f"{kind}-b64"])
    for tensor in leg.tensors:
        (codes, values), (codes_new, values_new) = (quantized(c.read(tensor.name)) for c in (t, u))
        found = tensor.survival[Setting(f"{kind}-b64", "adaptive")]
        assert found.code_flips == np.count_nonzero(codes != codes_new) > 0
        assert found.value_changes == np.count_nonzero(values != values_new)


@pytest.mark.parametrize("stored", [BF16, np.float32])
def test_dead_zone_of_pure_bf16_training_is_found(stored: type, tmp_path: Path) -> None:
    start = base()
    end: Tensors = {n: w.astype(stored) for n, w in trained(start, master=BF16).items()}
    leg = weights_leg(
        open_checkpoint(save(tmp_path / "t", start)), open_checkpoint(save(tmp_path / "u", end)), DEFAULT_FORMATS
    )
    assert leg.precision == "bfloat16"
    assert leg.storage_dtype == np.dtype(stored).name
    assert leg.dead_zone.detected
    assert leg.dead_zone.threshold == EDGE
    low, high = leg.dead_zone.lr_estimate
    assert low <= LR <= high


@pytest.mark.parametrize("stored", [BF16, np.float32])
def test_no_dead_zone_with_float32_masters(stored: type, tmp_path: Path) -> None:
    """Twenty steps of half a learning rate and more add up to an ulp of the largest weights."""
    start = base()
    end: Tensors = {n: w.astype(stored) for n, w in trained(start, master=np.float32).items()}
    t, u = save(tmp_path / "t", start), save(tmp_path / "u", end)
    leg = weights_leg(open_checkpoint(t), open_checkpoint(u), ["int8-row"])
    assert not leg.dead_zone.detected
    assert leg.precision == np.dtype(stored).name


def test_dead_zone_is_that_of_the_dtype_of_most_weights(tmp_path: Path) -> None:
    start = base()
    end = {n: w.astype(BF16) for n, w in trained(start, master=BF16).items()}
    end["layers.1.q_proj.weight"] = start["layers.1.q_proj.weight"].astype(np.float32) + LR
    t, u = save(tmp_path / "t", start), save(tmp_path / "u", end)
    leg = weights_leg(open_checkpoint(t), open_checkpoint(u), ["int8-row"])
    assert leg.storage_dtype == "bfloat16"
    assert leg.dead_zone.threshold == EDGE
    assert sum(leg.binades.weights) == 96 * 160 + 128 * 100


@pytest.mark.parametrize(
    ("values", "dtype", "precision"),
    [
        ([1.0, 2.0**-100], "float32", "bfloat16"),
        ([1.0 + 2.0**-10], "float32", "float16"),
        ([1.0 + 2.0**-20], "float32", "float32"),
        ([1.0 + 2.0**-10, 2.0**100], "float32", "float32"),
        ([1.0], "float16", "float16"),
    ],
)
def test_value_precision_is_the_narrowest(values: list[float], dtype: str, precision: str) -> None:
    assert value_precision(np.array(values, np.float32), dtype) == precision


TRIALS = 200
FALSE_ALARM = 1e-10


@pytest.mark.parametrize("law", ["one size", "gaussian"])
def test_gain_stderr_covers_the_scatter_of_the_gain(law: str) -> None:
    """Positions are redrawn, so the gain scatters by what `gain_stderr` states; never by more.

    The sample variance of a normal gain is chi-square over TRIALS - 1, whose upper tail at FALSE_ALARM is the slack.
    """
    rng = np.random.default_rng(2)
    size = 1 << 12
    gains, stated = [], []
    for _ in range(TRIALS):
        w = rng.uniform(-1, 1, (1, size)).astype(np.float32)
        w[0, 0] = 1
        unit = rng.choice([-1, 1], w.shape) if law == "one size" else rng.normal(size=w.shape)
        w_new = (w + 2e-3 * unit).astype(np.float32)
        part = survival(w, w_new, format_named("int4-row"), "fixed")
        gains.append(part.gain)
        stated.append(gain_stderr([part]))
    slack = chi2.isf(FALSE_ALARM, TRIALS - 1) / (TRIALS - 1)
    assert np.var(gains, ddof=1) <= slack * np.mean(np.square(stated))
    assert math.sqrt(np.var(gains, ddof=1)) > np.mean(stated) / 2  # and it is no wild overstatement

"""Adapters merged over their base: against exact sums, against PEFT, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import Checkpoint, CheckpointError, audit_pair, open_checkpoint, open_source
from unforgotten.audit.sources.notes import notes_of
from unforgotten.audit.sources.peft import TILE_ROWS, open_adapter

Tensors = dict[str, NDArray[Any]]
BF16 = ml_dtypes.bfloat16
OUT, IN, RANK = 2 * TILE_ROWS + 5, 24, 3
MATRIX = "model.layers.0.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
LORA = "base_model.model.model.layers.0.q_proj"


def finfo(dtype: Any) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def base(dtype: Any = np.float32) -> Tensors:
    rng = np.random.default_rng(0)
    shapes = {MATRIX: (OUT, IN), EMBEDDING: (10, IN), NORM: (IN,)}
    return {n: rng.normal(size=shape).astype(dtype) for n, shape in shapes.items()}


def lora(dtype: Any = np.float32) -> Tensors:
    """Factors; of bfloat16 a sum of RANK products is exact in float64, so that no order of it has another result."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(RANK, IN)), rng.normal(size=(OUT, RANK))
    return {f"{LORA}.lora_A.weight": a.astype(dtype), f"{LORA}.lora_B.weight": b.astype(dtype)}


def config(root: Path, **changes: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(root / "base"),
        "r": RANK,
        "lora_alpha": 5,
        "target_modules": ["q_proj"],
        "bias": "none",
        "lora_dropout": 0.1,
        "init_lora_weights": True,
        "task_type": "CAUSAL_LM",
        "peft_version": "0.21.2",
    }
    return plain | changes


def save(root: Path, tensors: Tensors, under: Tensors | None = None, **changes: Any) -> Path:
    """`root/base` and `root/adapter`; the path of the adapter."""
    for name, content in (("base", under or base()), ("adapter", tensors)):
        (root / name).mkdir()
        file = "model.safetensors" if name == "base" else "adapter_model.safetensors"
        save_file({n: np.ascontiguousarray(w) for n, w in content.items()}, root / name / file)
    (root / "adapter/adapter_config.json").write_text(json.dumps(config(root, **changes)))
    return root / "adapter"


def merged(root: Path, tensors: Tensors, under: Tensors | None = None, **changes: object) -> Checkpoint:
    adapter = save(root, tensors, under, **changes)
    return open_source(adapter, base=open_checkpoint(root / "base"))


def product(b: NDArray[Any], a: NDArray[Any]) -> NDArray[Any]:
    """B A in rationals."""
    to_exact = np.vectorize(lambda x: Fraction(float(x)), otypes=[object])
    return to_exact(b) @ to_exact(a)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, 5 / 3),
        ({"use_rslora": True}, 5 / math.sqrt(3)),
        ({"alpha_pattern": {"q_proj": 2}}, 2 / 3),
        ({"alpha_pattern": {"k_proj": 2, "^model.layers.0.q_proj": 4}}, 4 / 3),
    ],
)
def test_merged_is_the_exact_sum_rounded(
    dtype: Any, changes: dict[str, object], scaling: float, tmp_path: Path
) -> None:
    """Double rounding may move a tie by one unit in the last place; the bound is that of two roundings."""
    under, parts = base(dtype), lora(BF16)
    found = merged(tmp_path, parts, under, **changes).read(MATRIX)
    delta = product(parts[f"{LORA}.lora_B.weight"], parts[f"{LORA}.lora_A.weight"])
    assert found.dtype == dtype
    unit = float(finfo(dtype).eps) / 2 + float(np.finfo(np.float32).eps)
    exact = np.array(
        [
            float(Fraction(float(w)) + Fraction(scaling) * d)
            for w, d in zip(under[MATRIX].reshape(-1), delta.reshape(-1), strict=True)
        ]
    )
    error = np.abs(found.astype(np.float64).reshape(-1) - exact)
    tiny = float(finfo(dtype).smallest_subnormal)
    assert (error <= unit * np.abs(exact) + tiny).all()
    assert not np.array_equal(found, under[MATRIX])


@pytest.mark.parametrize("start", [0, 1, TILE_ROWS - 1, TILE_ROWS, OUT])
@pytest.mark.parametrize("kind", ["plain", "dora"])
def test_a_row_does_not_depend_on_its_range(kind: str, start: int, tmp_path: Path) -> None:
    parts = lora()
    if kind == "dora":
        parts[f"{LORA}.lora_magnitude_vector"] = np.linspace(1, 2, OUT).astype(np.float32)
    checkpoint = merged(tmp_path, parts, use_dora=kind == "dora")
    whole = checkpoint.read(MATRIX)
    for stop in (start, start + 1, start + TILE_ROWS, OUT):
        if stop <= OUT:
            assert np.array_equal(checkpoint.read_rows(MATRIX, start, stop), whole[start:stop])


def test_dora_rows_have_the_stored_length(tmp_path: Path) -> None:
    magnitude = np.linspace(0.5, 9, OUT).astype(np.float32)
    parts = lora() | {f"{LORA}.lora_magnitude_vector.weight": magnitude}
    found = merged(tmp_path, parts, use_dora=True).read(MATRIX).astype(np.float64)
    # each entry is rounded once to float32, and a norm of them or a product with them moves by as much at most
    slack = 2 * np.finfo(np.float32).eps
    assert (np.abs(np.linalg.norm(found, axis=1) - magnitude) <= slack * magnitude).all()
    delta = parts[f"{LORA}.lora_B.weight"].astype(float) @ parts[f"{LORA}.lora_A.weight"]
    direction = base()[MATRIX] + 5 / 3 * delta
    cosine = (found * direction).sum(axis=1) / np.linalg.norm(direction, axis=1) / magnitude
    assert (np.abs(cosine - 1) <= slack).all()


def test_fan_in_fan_out_adds_the_transpose(tmp_path: Path) -> None:
    turned = base() | {MATRIX: np.ascontiguousarray(base()[MATRIX].T)}
    plain = merged(_made(tmp_path / "1"), lora(BF16)).read(MATRIX)
    found = merged(_made(tmp_path / "2"), lora(BF16), turned, fan_in_fan_out=True)
    assert np.array_equal(found.read(MATRIX).T, plain)
    assert np.array_equal(found.read_rows(MATRIX, 3, 5).T, plain[:, 3:5])


def test_a_flag_that_the_shapes_contradict_is_said_and_passed_over(tmp_path: Path) -> None:
    """PEFT sets fan_in_fan_out to false for an nn.Linear, whatever the file says."""
    plain = merged(_made(tmp_path / "1"), lora(BF16)).read(MATRIX)
    found = merged(_made(tmp_path / "2"), lora(BF16), fan_in_fan_out=True)
    assert np.array_equal(found.read(MATRIX), plain)
    assert any(
        "fan_in_fan_out is true, but the base stores 1 of the matrices as (out, in)" in n for n in notes_of(found)
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_embedding_is_merged_and_modules_to_save_take_their_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=s).astype(BF16) for s in ((RANK, 10), (IN, RANK)))
    root = "base_model.model.model.embed_tokens"
    parts = {
        f"{root}.lora_embedding_A": a,
        f"{root}.lora_embedding_B": b,
        "base_model.model.model.norm.weight": np.full(IN, 7, np.float32),
    }
    found = merged(tmp_path, parts)
    expected = base()[EMBEDDING] + 5 / 3 * (b.astype(float) @ a.astype(float)).T
    assert np.array_equal(found.read(EMBEDDING), expected.astype(np.float32))
    assert np.array_equal(found.read(NORM), np.full(IN, 7))
    assert np.array_equal(found.read_rows(NORM, 2, 4), [7, 7])
    assert np.array_equal(found.read(MATRIX), base()[MATRIX])


def test_base_layer_in_the_adapter_is_the_base(tmp_path: Path) -> None:
    own = np.ones((OUT, IN), np.float32)
    parts = lora(BF16)
    found = merged(tmp_path, parts | {f"{LORA}.base_layer.weight": own}).read(MATRIX)
    delta = parts[B].astype(float) @ parts[A].astype(float)
    assert np.array_equal(found, (own + 5 / 3 * delta).astype(np.float32))


@pytest.mark.parametrize("headless", [True, False])
def test_prefix_of_the_base_may_be_missing(headless: bool, tmp_path: Path) -> None:
    under = {n.removeprefix("model.") if headless else n: w for n, w in base().items()}
    parts = {n.replace("model.model.", "model.") if not headless else n: w for n, w in lora().items()}
    found = merged(tmp_path, parts, under)
    assert MATRIX.removeprefix("model.") if headless else MATRIX in found.tensors
    name = MATRIX.removeprefix("model.") if headless else MATRIX
    assert not np.array_equal(found.read(name), under[name])


def test_ranks_by_pattern(tmp_path: Path) -> None:
    found = merged(tmp_path, lora(), r=64, rank_pattern={"layers.0.q_proj": RANK})
    assert np.array_equal(found.read(MATRIX), merged(_made(tmp_path / "x"), lora()).read(MATRIX))


def test_audit_of_an_adapter_is_that_of_the_merged_model(tmp_path: Path) -> None:
    adapter = save(tmp_path, lora(BF16), base(BF16))
    whole = open_adapter(adapter, open_checkpoint(tmp_path / "base"))
    (tmp_path / "merged").mkdir()
    save_file({n: whole.read(n) for n in whole.tensors}, tmp_path / "merged/model.safetensors")
    one = audit_pair(tmp_path / "base", adapter, ["nf4-b64"])
    two = audit_pair(tmp_path / "base", tmp_path / "merged", ["nf4-b64"])
    assert one["unlearned"].pop("sha256") != two["unlearned"].pop("sha256")  # type: ignore[misc]
    one["unlearned"]["source"] = two["unlearned"]["source"]
    assert one == two


def test_digest_depends_on_base_adapter_and_configuration(tmp_path: Path) -> None:
    variants = [(base(), lora(), 5), (base(BF16), lora(), 5), (base(), lora(BF16), 5), (base(), lora(), 6)]
    digests = {_digest(_made(tmp_path / str(i)), *v) for i, v in enumerate(variants)}
    assert len(digests) == len(variants)


def _digest(root: Path, under: Tensors, parts: Tensors, alpha: float) -> str:
    adapter = save(root, parts, under, base_model_name_or_path="org/base", lora_alpha=alpha)
    return open_source(f"{adapter}::{root / 'base'}").sha256()


A, B = (f"{LORA}.lora_{part}.weight" for part in "AB")
Change = Callable[[Tensors], None]


def put(name: str, w: NDArray[Any]) -> Change:
    return lambda parts: parts.update({name: w})


def drop(name: str) -> Change:
    return lambda parts: parts.__delitem__(name)


def same(parts: Tensors) -> None:
    pass


ONES = np.ones((RANK, IN), np.float32)
BAD: dict[str, tuple[Change, dict[str, Any], tuple[str, ...]]] = {
    "not LoRA": (same, {"peft_type": "IA3"}, ("adapter_config.json", "LORA", "'IA3'")),
    "unknown option": (same, {"use_qalora": True}, ("unset", "'use_qalora'")),
    "future option": (same, {"flux_capacitor": [1]}, ("unset", "'flux_capacitor'")),
    "PiSSA": (same, {"init_lora_weights": "pissa"}, ("init_lora_weights", "'pissa'")),
    "init of a wild type": (same, {"init_lora_weights": [1]}, ("init_lora_weights", "[1]")),
    "LoRA bias": (same, {"lora_bias": True}, (MATRIX, "parts a, b, bias", "got a, b")),
    "no base": (same, {"base_model_name_or_path": None}, ("::BASE", "got ''")),
    "base no text": (same, {"base_model_name_or_path": [1]}, ("base_model_name_or_path", "[1]")),
    "base elsewhere": (same, {"base_model_name_or_path": "/etc"}, ("not followed", "'/etc'")),
    "base above": (same, {"base_model_name_or_path": "../other"}, ("not followed", "'../other'")),
    "NUL in base": (same, {"base_model_name_or_path": "\0"}, ("base_model_name_or_path", "x00")),
    "long base": (same, {"base_model_name_or_path": "a" * 2000}, ("base_model_name_or_path", "aaa")),
    "rank 0": (same, {"r": 0}, ("r in 1", "got 0")),
    "rank a text": (same, {"r": "8"}, ("number for r", "'8'")),
    "rank true": (same, {"r": True}, ("number for r", "True")),
    "huge rank": (same, {"r": 10**400}, ("r in 1", "000…")),
    "alpha nan": (same, {"lora_alpha": math.nan}, ("lora_alpha", "nan")),
    "alpha infinite": (same, {"lora_alpha": math.inf}, ("lora_alpha", "inf")),
    "flag a text": (same, {"use_dora": "no"}, ("use_dora", "'no'")),
    "pattern that hangs": (same, {"rank_pattern": {"(a+)+$": 3}}, ("plain module names", "(a+)+")),
    "pattern of a text": (same, {"alpha_pattern": {"q_proj": "x"}}, ("alpha_pattern of q_proj",)),
    "list of patterns": (same, {"rank_pattern": ["q_proj"]}, ("object for rank_pattern",)),
    "wrong rank": (same, {"r": 4}, (A, f"[4, {IN}]", f"[{RANK}, {IN}]")),
    "A without B": (drop(B), {}, (MATRIX, "parts a, b", "got a")),
    "B without A": (drop(A), {}, (MATRIX, "parts a, b", "got b")),
    "DoRA without magnitude": (same, {"use_dora": True}, (MATRIX, "magnitude")),
    "magnitude without DoRA": (put(f"{LORA}.lora_magnitude_vector", ONES[0]), {}, (MATRIX, "a, b, magnitude")),
    "two magnitudes": (
        lambda p: p.update({f"{LORA}.lora_magnitude_vector{e}": ONES[0] for e in ("", ".weight")}),
        {"use_dora": True},
        ("lora_magnitude_vector", "must not be stored with"),
    ),
    "DoRA of GPT-2": (same, {"use_dora": True, "fan_in_fan_out": True}, ("fan_in_fan_out",)),
    "wrong width": (put(A, np.ones((RANK, IN + 1), np.float32)), {}, (A, f"[{RANK}, {IN}]")),
    "four axes": (put(A, np.ones((RANK, IN, 1, 1), np.float32)), {}, (A, "[3, 24, 1, 1]")),
    "LoRA of a vector": (
        lambda p: p.update({f"base_model.model.model.norm.lora_{x}.weight": ONES for x in "AB"}),
        {},
        (NORM, "matrix", f"[{IN}]"),
    ),
    "integers": (put(A, np.ones((RANK, IN), np.int8)), {}, (A, "F32", "int8")),
    "not in the base": (
        put("base_model.model.model.layers.9.lora_A.weight", ONES),
        {},
        ("layers.9.lora_A", "no 'model.layers.9.weight'"),
    ),
    "unknown part": (put(f"{LORA}.lora_C.weight", ONES), {}, ("lora_C", "tensor of the base")),
    "empty": (lambda p: p.clear(), {}, ("must hold a tensor",)),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_adapter_is_refused_in_one_line(kind: str, tmp_path: Path, audit_refuses: Callable[..., None]) -> None:
    change, changes, words = BAD[kind]
    parts = lora()
    change(parts)
    adapter = save(tmp_path, parts, **changes)
    audit_refuses((tmp_path / "base", adapter), tmp_path, words)


def test_pickled_adapter_is_refused_by_name(tmp_path: Path) -> None:
    adapter = save(tmp_path, lora())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"a pickle can run code\), got adapter_model\.bin"):
        open_source(adapter, base=open_checkpoint(tmp_path / "base"))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_link_out_of_the_adapter_is_refused(file: str, tmp_path: Path) -> None:
    adapter = save(tmp_path, lora())
    (adapter / file).rename(tmp_path / file)
    (adapter / file).symlink_to(tmp_path / file)
    with pytest.raises(CheckpointError, match=f"{file} must not be a link out of its directory"):
        open_source(adapter, base=open_checkpoint(tmp_path / "base"))


def test_mark_needs_an_adapter(tmp_path: Path) -> None:
    save(tmp_path, lora())
    with pytest.raises(CheckpointError, match="base must be a directory of a PEFT adapter"):
        open_source(f"{tmp_path / 'base'}::{tmp_path / 'base'}")


def test_infinite_sum_is_refused_with_its_name(tmp_path: Path) -> None:
    adapter = save(tmp_path, {n: w * np.float32(1e20) for n, w in lora().items()})
    with pytest.raises(CheckpointError, match=rf"'{MATRIX}' must be finite, got -?inf .*weights\)"):
        audit_pair(tmp_path / "base", adapter, ["int8-row"])


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_is_that_of_peft(kind: str, dtype: str, tmp_path: Path) -> None:
    """Sums in another order: a weight differs by an ulp of its dtype at most, and hardly ever in bfloat16."""
    torch = pytest.importorskip("torch", reason="PEFT needs it")
    peft = pytest.importorskip("peft", reason="the reference for adapters")
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(256, 192, bias=False)}).to(getattr(torch, dtype))
    torch.manual_seed(0)
    options = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    settings = peft.LoraConfig(r=8, lora_alpha=20, target_modules=["q_proj"], **options)
    under = {"q_proj.weight": _as_numpy(model["q_proj"].weight)}
    wrapped = peft.get_peft_model(model, settings)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").mkdir()
    save_file(under, tmp_path / "base/model.safetensors")
    ours = open_adapter(tmp_path / "adapter", open_checkpoint(tmp_path / "base")).read("q_proj.weight")
    theirs = _as_numpy(wrapped.merge_and_unload()["q_proj"].weight)
    assert not np.array_equal(theirs, under["q_proj.weight"])
    eps = float(finfo(ours.dtype).eps)
    gap = np.abs(ours.astype(float) - theirs.astype(float))
    # float32: 8 products and a sum of 9, each within u of the largest partial sum; DoRA: a norm of 256 more
    terms = (9 if kind != "dora" else 9 + 256) if dtype == "float32" else 1
    assert (gap <= terms * eps * np.abs(theirs.astype(float)).max()).all()
    if dtype == "bfloat16":
        assert (gap != 0).mean() < 0.01


def _as_numpy(weight: Any) -> NDArray[Any]:
    w = weight.detach()
    return w.float().numpy().astype(BF16) if str(w.dtype) == "torch.bfloat16" else w.numpy().copy()

"""Public reports about what adapters hold beside A and B, and how their keys are spelled; against PEFT where it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import Checkpoint, CheckpointError, audit_pair, open_checkpoint, open_pair
from unforgotten.audit.sources.notes import notes_of
from unforgotten.audit.sources.peft import open_adapter

Tensors = dict[str, NDArray[Any]]
MATRIX, BIAS = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA = "base_model.model.model.layers.0.self_attn.q_proj"
TOKENS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
OUT, IN, RANK, ALPHA = 70, 16, 2, 6.0


def draw(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def base(prefix: str = "model.", *, head: bool = False, dtype: Any = np.float32) -> Tensors:
    tensors = {
        f"{prefix}layers.0.self_attn.q_proj.weight": draw(OUT, IN),
        f"{prefix}layers.0.self_attn.q_proj.bias": draw(OUT),
        f"{prefix}embed_tokens.weight": draw(80, IN),
        f"{prefix}norm.weight": draw(IN),
    }
    return {n: w.astype(dtype) for n, w in (tensors | ({HEAD: draw(80, IN)} if head else {})).items()}


def lora(module: str = LORA, name: str = "") -> Tensors:
    return {
        f"{module}.lora_A{name}.weight": draw(RANK, IN, seed=1),
        f"{module}.lora_B{name}.weight": draw(OUT, RANK, seed=1),
    }


def save(root: Path, adapter: Tensors, under: Tensors | None = None, config: object = None, **changes: object) -> Path:
    for folder, file, tensors in (
        ("base", "model.safetensors", under or base()),
        ("adapter", "adapter_model.safetensors", adapter),
    ):
        (root / folder).mkdir()
        save_file(tensors, root / folder / file)
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(root / "base"), "r": RANK, "lora_alpha": ALPHA}
    (root / "adapter/adapter_config.json").write_text(json.dumps(settings | changes))
    if config is not None:
        (root / "base/config.json").write_text(json.dumps(config))
    return root / "adapter"


def merged(root: Path, adapter: Tensors, under: Tensors | None = None, **changes: Any) -> Checkpoint:
    return open_adapter(save(root, adapter, under, **changes), open_checkpoint(root / "base"))


DELTA = ALPHA / RANK * (draw(OUT, RANK, seed=1).astype(np.float64) @ draw(RANK, IN, seed=1))
WRAPPERS = [
    ("language_model.model.", "model.language_model."),
    ("model.", "model.language_model."),
    ("model.language_model.", "model."),
    ("_orig_mod.model.", "model."),
]


@pytest.mark.parametrize(("theirs", "ours"), WRAPPERS)
def test_keys_of_an_older_or_narrower_class_find_the_base(theirs: str, ours: str, tmp_path: Path) -> None:
    """peft#2574: adapters trained before transformers 4.52, or on the text model alone, found nothing in the base."""
    vision = {"model.visual.blocks.0.self_attn.q_proj.weight": draw(OUT, IN)}
    module = f"base_model.model.{theirs}layers.0.self_attn.q_proj"
    found = merged(tmp_path, lora(module), base(ours) | vision)
    name = f"{ours}layers.0.self_attn.q_proj.weight"
    assert np.array_equal(found.read(name), (draw(OUT, IN) + DELTA).astype(np.float32))
    (note,) = notes_of(found)
    assert f"1 tensors of the base are named otherwise than in the adapter, by wrappers alone: '{theirs}" in note


def test_a_name_that_fits_two_tensors_of_the_base_is_refused(tmp_path: Path) -> None:
    two = base("model.language_model.") | base("model.text_model.")
    with pytest.raises(CheckpointError, match=r"got no 'model\.layers\.0\.self_attn\.q_proj\.weight'"):
        merged(tmp_path, lora(), two)


@pytest.mark.parametrize("whole", [False, True])
def test_the_name_of_the_adapter_may_stand_in_its_keys(whole: bool, tmp_path: Path) -> None:
    """modelscope/ms-swift#414: a state dict that `save_pretrained` did not write says `lora_A.default.weight`."""
    norm = {"base_model.model.model.norm.modules_to_save.default.weight": draw(IN, seed=2)} if whole else {}
    found = merged(tmp_path, lora(name=".default") | norm)
    assert np.array_equal(found.read(MATRIX), (draw(OUT, IN) + DELTA).astype(np.float32))
    assert np.array_equal(found.read("model.norm.weight"), draw(IN, seed=2 if whole else 0))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_bias_of_b_is_added_to_that_of_the_base(dtype: Any, tmp_path: Path) -> None:
    """peft#3761: `lora_bias` was refused, though PEFT merges it."""
    bias = {f"{LORA}.lora_B.bias": draw(OUT, seed=3)}
    found = merged(tmp_path, lora() | bias, base(dtype=dtype), lora_bias=True)
    under = draw(OUT).astype(dtype).astype(np.float64)
    expected = (under + ALPHA / RANK * draw(OUT, seed=3).astype(np.float64)).astype(np.float32).astype(dtype)
    assert np.array_equal(found.read(BIAS), expected)
    assert np.array_equal(found.read_rows(BIAS, 5, 9), expected[5:9])
    assert np.array_equal(found.read_flat(BIAS, 5, 9), expected[5:9])


@pytest.mark.parametrize(
    ("under", "got"),
    [
        ({BIAS: draw(OUT - 1)}, r"float32 \[69\]"),
        ({BIAS: np.ones(OUT, np.int8)}, r"int8 \[70\]"),
        ({}, "no such tensor"),
    ],
)
def test_a_bias_without_one_in_the_base_is_refused(under: Tensors, got: str, tmp_path: Path) -> None:
    tensors = {n: w for n, w in base().items() if n != BIAS} | under
    with pytest.raises(CheckpointError, match=f"must be added to '{BIAS}' of the base, 70 numbers .* got {got}"):
        merged(tmp_path, lora() | {f"{LORA}.lora_B.bias": draw(OUT, seed=3)}, tensors, lora_bias=True)


INDICES = [71, 3, 64]


def with_rows(w: NDArray[Any]) -> NDArray[Any]:
    w = w.copy()
    w[INDICES] = draw(3, IN, seed=4).astype(w.dtype)
    return w


@pytest.mark.parametrize("stated", [INDICES, {"embed_tokens": INDICES}, {"lm_head": [0], "embed_tokens": INDICES}])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_of_single_tokens_take_the_place_of_the_bases(dtype: Any, stated: object, tmp_path: Path) -> None:
    """`trainable_token_indices` was refused, though the adapter stores the rows as they are after training."""
    adapter = lora() | {TOKENS: draw(3, IN, seed=4)}
    found = merged(tmp_path, adapter, base(dtype=dtype), trainable_token_indices=stated)
    expected = with_rows(draw(80, IN).astype(dtype))
    assert np.array_equal(found.read(EMBEDDING), expected)
    for start, stop in ((0, 3), (3, 4), (60, 80), (72, 80)):
        assert np.array_equal(found.read_rows(EMBEDDING, start, stop), expected[start:stop])
    assert audit_pair(tmp_path / "base", tmp_path / "adapter", ["int8-row"])["coverage"]["kept_changed"] == [EMBEDDING]


@pytest.mark.parametrize(("tied", "config"), [(True, None), (False, {"tie_word_embeddings": False})])
def test_rows_of_a_tied_head_that_is_stored_change_with_the_embedding(
    tied: bool, config: object, tmp_path: Path
) -> None:
    adapter = lora() | {TOKENS: draw(3, IN, seed=4)}
    found = merged(tmp_path, adapter, base(head=True), config=config, trainable_token_indices=INDICES)
    assert np.array_equal(found.read(HEAD), with_rows(draw(80, IN)) if tied else draw(80, IN))


BAD_TOKENS: dict[str, tuple[object, Tensors, str]] = {
    "none": (None, {}, f"must have trainable_token_indices of '{EMBEDDING}', got none"),
    "of another module": ({"lm_head": INDICES}, {}, "must have trainable_token_indices of"),
    "one less": (INDICES[:2], {}, r"must have the shape \[2, 16\] of its indices and base, got \[3, 16\]"),
    "outside": ([1, 2, 80], {}, "below the 80 rows of 'model.embed_tokens.weight', got 80"),
    "below 0": ([1, 2, -1], {}, "lists of different indices"),
    "twice": ([1, 2, 1], {}, "lists of different indices"),
    "true": ([1, 2, True], {}, "lists of different indices"),
    "a number": (7, {}, "lists of different indices"),
    "beside the whole": (
        INDICES,
        {"base_model.model.model.embed_tokens.weight": draw(80, IN)},
        "must change a tensor of the base in one way",
    ),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_bad_rows_of_tokens_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    stated, more, words = BAD_TOKENS[kind]
    with pytest.raises(CheckpointError, match=words) as caught:
        merged(tmp_path, {TOKENS: draw(3, IN, seed=4)} | more, trainable_token_indices=stated)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"use_qalora": True},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
        {"layer_replication": [[0, 1]]},
        {"rank_pattern": {".*q_proj": 2}},
        {"peft_type": "LOHA"},
    ],
)
def test_a_refusal_says_what_would_work(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="or be merged by merge_and_unload of PEFT first, where it can be, got"):
        merged(tmp_path, lora(), **changes)


def test_factors_that_were_not_gathered_are_named_so(tmp_path: Path) -> None:
    """KnowUnDo#3: under ZeRO-3 an adapter of empty tensors is saved."""
    with pytest.raises(CheckpointError, match=r"\(gathered from its shards before it is saved, with ZeRO-3 or FSDP\)"):
        merged(tmp_path, {name: np.zeros(0, np.float32) for name in lora()})


def test_a_nested_head_that_the_base_ties_is_untied(tmp_path: Path) -> None:
    """The head of a model of text and images is within it, and its adapter speaks of that."""
    head = "base_model.model.language_model.lm_head"
    factors = {f"{head}.lora_A.weight": draw(RANK, IN, seed=1), f"{head}.lora_B.weight": draw(80, RANK, seed=1)}
    save(tmp_path, factors, base("language_model.model."))
    _, after = open_pair(tmp_path / "base", tmp_path / "adapter")
    delta = ALPHA / RANK * (draw(80, RANK, seed=1).astype(np.float64) @ draw(RANK, IN, seed=1))
    assert np.array_equal(after.read("language_model.lm_head.weight"), (draw(80, IN) + delta).astype(np.float32))


Settings = Callable[[Any], Any]


@pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.s. have invalid shape"
)  # of PEFT, which takes a bias for a cut factor
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["bias", "list", "object", "dora", "whole"])
def test_merged_is_that_of_peft(kind: str, tied: bool, tmp_path: Path) -> None:
    """Sums in another order: a weight differs by an ulp of the largest term at most."""
    torch = pytest.importorskip("torch", reason="PEFT needs it")
    transformers = pytest.importorskip("transformers", reason="the model")
    peft = pytest.importorskip("peft", reason="the reference for adapters")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, attention_bias=True, tie_word_embeddings=tied, **small)
    )
    model.save_pretrained(tmp_path / "base")
    options: dict[str, dict[str, Any]] = {
        "bias": {"lora_bias": True},
        "list": {"trainable_token_indices": [7, 3]},
        "object": {"trainable_token_indices": {"embed_tokens": [7, 3]} | ({} if tied else {"lm_head": [7, 3]})},
        "dora": {"use_dora": True, "use_rslora": True},
        "whole": {"modules_to_save": ["norm"]},
    }
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], **options[kind]))
    for name, parameter in wrapped.named_parameters():
        if any(part in name for part in ("lora_B", "tokens_delta", "modules_to_save")):
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    ours = open_adapter(tmp_path / "adapter", open_checkpoint(tmp_path / "base"))
    theirs = {n: w.detach().numpy() for n, w in wrapped.merge_and_unload().state_dict().items()}
    changed = 0
    for name in ours.tensors:
        expected, found = theirs[name].astype(float), ours.read(name).astype(float)
        changed += not np.array_equal(found, open_checkpoint(tmp_path / "base").read(name))
        # two products and a sum of three, each within u of the largest partial sum; DoRA: a norm of 16 more
        slack = (3 + 16) * np.finfo(np.float32).eps * np.abs(expected).max()
        assert (np.abs(found - expected) <= slack).all(), name
    assert changed >= 1 + (kind in ("bias", "list", "object", "whole"))

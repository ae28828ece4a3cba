"""Which tensors of a model are quantized, and along which axis: those of the weights leg, whatever the architecture."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="models need unforgotten[experiments]")

import transformers as hf
from transformers.pytorch_utils import Conv1D

from unforgotten.audit.mixes.mix import formats_of
from unforgotten.audit.sources.open import open_pair
from unforgotten.audit.sources.pairing import pair
from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.robust.boundary import push
from unforgotten.experiments.methods.robust.straight_through import StraightThroughStep
from unforgotten.experiments.methods.settings import settings_of
from unforgotten.experiments.methods.steps import Losses
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.matrices.conv1d import conv1d_names
from unforgotten.experiments.models.saved import load_model, load_tokenizer, save_model
from unforgotten.experiments.models.shell import Shell, linear_names, state_of
from unforgotten.experiments.pilot import GradientRecorder
from unforgotten.records.gradients import BLOCK
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.verification.domains.micro_target import VOCABULARY, micro_task

# transformers decorates functions of gpt_bigcode with it when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

OF_LLAMA: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OF_GPT2: dict[str, Any] = {"vocab_size": 264, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
OF_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OF_MAMBA = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 64}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", OF_LLAMA),
    "gpt-neox": ("GPTNeoX", {k: v for k, v in OF_LLAMA.items() if k != "num_key_value_heads"}),
    "bloom": ("Bloom", {"vocab_size": 264, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "opt": (
        "OPT",
        {"vocab_size": 264, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "gpt-bigcode": ("GPTBigCode", {**OF_GPT2, **ENDS}),
    "qwen2-moe": ("Qwen2Moe", {**OF_LLAMA, **OF_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3-moe": ("Qwen3Moe", {**OF_LLAMA, **OF_EXPERTS, "head_dim": 16}),
    "mamba": ("Mamba", OF_MAMBA),
    "lfm2": ("Lfm2", {**OF_LLAMA, "layer_types": ["conv", "full_attention"]}),
    "recurrent-gemma": (
        "RecurrentGemma",
        {
            "vocab_size": 264,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "lru_width": 64,
        },
    ),
    "gemma3n": (
        "Gemma3n",
        {
            **OF_LLAMA,
            "vocab_size_per_layer_input": 264,
            "hidden_size_per_layer_input": 16,
            "head_dim": 16,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
}
FORMATS = ("int4-g64", "nf4-b64", "int8-row", "int8-tensor")
FACTORS = 4 * 2.0**-24
"""Two roundings to float32 in a product of a code and a scale, made in either of two ways."""
FUSED = re.compile(r"experts\.(gate_up_proj|down_proj)\[(\d+)\]$")


def made(name: str) -> Any:
    """A model of random weights."""
    torch.manual_seed(0)
    kind, sizes = ARCHITECTURES[name]
    config = getattr(hf, f"{kind}TextConfig" if name == "gemma3n" else f"{kind}Config")(**sizes)
    return getattr(hf, f"{kind}ForCausalLM")(config)


def narrow_gpt2(**sizes: Any) -> Any:
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**{**OF_GPT2, **ENDS, **dropout, **sizes}))


def openai_gpt() -> Any:
    torch.manual_seed(0)
    return hf.OpenAIGPTLMHeadModel(hf.OpenAIGPTConfig(**OF_GPT2))


MAKERS: dict[str, Callable[[], Any]] = {
    **{name: partial(made, name) for name in ARCHITECTURES},
    "gpt2": narrow_gpt2,
    "openai-gpt": openai_gpt,
}


def as_in_files(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The matrices of one expert as files of Qwen name them, which split gate from up; any other is itself."""
    found = FUSED.search(name)
    if found is None:
        return {name: shape}
    place = f"{name[: found.start()]}experts.{found[2]}"
    if found[1] == "down_proj":
        return {f"{place}.down_proj.weight": shape}
    return {f"{place}.{part}_proj.weight": (shape[0] // 2, shape[1]) for part in ("gate", "up")}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_models_quantize_what_the_audit_decomposes(name: str, tmp_path: Path) -> None:
    """Names and shapes, (out, in): the blocks of both lie along the inputs."""
    model = MAKERS[name]()
    shell = Shell(model, None)
    model.save_pretrained(tmp_path)
    before, after = open_pair(tmp_path, tmp_path)
    decomposed = {key: before.tensors[key].shape for key in pair(before, after).quantized}
    seen = shell.shown(model.state_dict())
    quantized: dict[str, tuple[int, ...]] = {}
    for key in shell.names:
        parts = [f"{key}[{i}]" for i in range(shell.experts[key])] if key in shell.experts else [key]
        for part in parts:
            quantized |= as_in_files(part, tuple(seen[part.replace("[", ".").replace("]", "")].shape))
    assert quantized == decomposed


def by_hand(w: NDArray[np.float32], bits: int, size: int) -> NDArray[np.float32]:
    """Symmetric integers in blocks of `size` along the rows, rounded to nearest."""
    blocks, most = w.reshape(-1, size), np.float32(2 ** (bits - 1) - 1)
    scale = np.abs(blocks).max(1, keepdims=True) / most
    return (np.rint(blocks / scale).clip(-most, most) * scale).reshape(w.shape)


def in_blocks(name: str) -> bool:
    return name.startswith("transformer.h.") and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_conv1d_is_rounded_along_its_inputs_and_stays_as_it_is_stored(fmt: str) -> None:
    state = state_of(narrow_gpt2())
    found = Shell(narrow_gpt2(), None).quantized(state, fmt)
    assert found.keys() == state.keys()
    assert sum(in_blocks(name) for name in state) == 8
    for name, w in state.items():
        expected = round_trip(w.numpy().T.copy(), format_named(fmt)).T if in_blocks(name) else w.numpy()
        assert np.array_equal(found[name].numpy(), expected), name
        assert in_blocks(name) != torch.equal(found[name], w)


def test_conv1d_is_rounded_as_by_hand() -> None:
    """The products of codes and scales agree to a rounding of each factor."""
    state = state_of(narrow_gpt2())
    found = Shell(narrow_gpt2(), None).quantized(state, "int4-g64")
    for name in filter(in_blocks, state):
        expected = by_hand(state[name].numpy().T.copy(), 4, 64).T
        assert np.allclose(found[name].numpy(), expected, rtol=FACTORS, atol=0), name


@pytest.mark.parametrize("fmt", FORMATS)
def test_of_mamba_the_linear_layers_alone_are_rounded(fmt: str) -> None:
    model = made("mamba")
    state = state_of(model)
    found = Shell(model, None).quantized(state, fmt)
    for name, w in state.items():
        linear = name.endswith(("in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"))
        expected = round_trip(w.numpy(), format_named(fmt)) if linear else w.numpy()
        assert np.array_equal(found[name].numpy(), expected), name


def test_a_mix_gives_conv1d_the_formats_that_the_audit_gives_it(tmp_path: Path) -> None:
    """Rows of inputs decide whether blocks of 256 fit: of `c_fc` 256 inputs do, 128 do not."""
    model = narrow_gpt2(n_embd=256, n_inner=128, n_layer=1)
    shell, mix = Shell(model, None), "gguf:Q4_K_M"
    model.save_pretrained(tmp_path)
    before, after = open_pair(tmp_path, tmp_path)
    names = pair(before, after)
    shapes = {name: before.tensors[name].shape for name in (*names.quantized, *names.kept)}
    measured = {name: fmt.name for name, fmt in formats_of(mix, shapes, names.quantized).items()}
    assert shell.mixed(mix) == measured
    state = state_of(model)
    found = shell.quantized(state, mix)
    for name in filter(in_blocks, state):
        expected = round_trip(state[name].numpy().T.copy(), format_named(measured[name])).T
        assert np.array_equal(found[name].numpy(), expected), name
    assert len({measured[name] for name in filter(in_blocks, state)}) > 1


@pytest.mark.parametrize("fmt", ["gptq:int4-g64", "awq-retain:int4-g64", "dynamic:int8-row", "smoothquant:int8-row"])
def test_conv1d_is_seen_by_no_format_that_sees_layers(fmt: str) -> None:
    text = [[1, 2, 3]]
    model = narrow_gpt2()
    shell = Shell(model, None, {"generic": text, "retain": text})
    words = rf"^{fmt} sees layers at work, which must be nn\.Linear for it, got Conv1D: transformer\.h\.0\.attn\.c_attn"
    with pytest.raises(ValueError, match=words):
        shell.quantized(state_of(model), fmt)
    with pytest.raises(ValueError, match=words):
        shell.check(["int4-g64", fmt])


def test_conv1d_that_the_audit_would_not_turn_is_refused() -> None:
    model = narrow_gpt2()
    model.transformer.h[0].mlp.other = Conv1D(64, 64)
    with pytest.raises(ValueError, match=r"^Conv1D must be c_attn, c_fc, c_proj, q_attn .*got .*mlp\.other\.weight$"):
        conv1d_names(model)


def test_experts_that_are_stored_inputs_first_are_refused() -> None:
    sizes: dict[str, Any] = {
        **OF_LLAMA,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "head_dim": 16,
        "moe_layers": [1],
    }
    model = hf.Llama4ForCausalLM(hf.Llama4TextConfig(**sizes))
    with pytest.raises(ValueError, match=r"experts must be kept as \(experts, out, in\), got \(experts, in, out\)"):
        linear_names(model)


def without_matrices() -> Any:
    """A Llama whose layers are gone: an embedding, a norm and a head."""
    model = TINY.model(BaseConfig(vocabulary=300, width=64, feed_forward=64, layers=1, heads=2, positions=64), 0)
    del model.model.layers[0]
    return model


def test_a_model_without_a_matrix_is_refused_and_not_taken_for_quantized() -> None:
    model = without_matrices()
    shell = Shell(model, None)
    assert shell.names == []
    words = "^LlamaForCausalLM must have a matrix that quantizers touch, for int4-g64 would change nothing"
    with pytest.raises(ValueError, match=words):
        shell.check(["none", "int4-g64"])
    with pytest.raises(ValueError, match=words):
        shell.quantized(state_of(model), "int4-g64")
    shell.check(["none"])


@pytest.fixture(scope="module")
def gpt2_pair(micro_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two narrow GPT-2, and both with their matrices rounded to int2-g64 along the inputs, beside the tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), load_tokenizer(micro_pair / "models/target")
    model, found = narrow_gpt2(vocab_size=len(tokenizer)), {}
    generator = torch.Generator().manual_seed(7)
    for name in ("target", "unlearned"):
        with torch.no_grad():
            for p in model.parameters() if name == "unlearned" else ():
                p += 0.02 * torch.randn(p.shape, generator=generator)
        found[name] = folder / name
        save_model(found[name], model, tokenizer, torch.float32, {})
        rounded = load_model(found[name])
        with torch.no_grad():
            for key, p in rounded.named_parameters():
                if in_blocks(key):
                    p.copy_(torch.from_numpy(round_trip(p.numpy().T.copy(), format_named("int2-g64")).T.copy()))
        found[f"Q({name})"] = folder / f"q-{name}"
        save_model(found[f"Q({name})"], rounded, tokenizer, torch.float32, {})
    return found


def test_the_output_leg_runs_gpt2_with_rounded_matrices(gpt2_pair: dict[str, Path], micro_pair: Path) -> None:
    texts = micro_pair / "corpus/privleak/forget.json"
    leg = output_leg(gpt2_pair["target"], gpt2_pair["unlearned"], ["int2-g64"], texts)
    rounded = output_leg(gpt2_pair["Q(target)"], gpt2_pair["Q(unlearned)"], ["int2-g64"], texts)
    losses = leg["formats"][0]["losses"]
    for name in ("target", "unlearned"):
        assert losses[f"Q({name})"] == rounded["losses"][name]
        assert losses[f"Q({name})"] != leg["losses"][name]
    functional = leg.get("functional")
    assert functional is not None
    (row,) = functional["formats"]
    assert row["weights"] == 2 * 12 * 64**2
    assert row["functional_gain"] not in (None, 1.0)
    assert row["sham_gain"] is not None


LEGS: dict[str, tuple[Callable[..., Any], str]] = {
    "output": (output_leg, "privleak/forget.json"),
    "behaviour": (behaviour_leg, "."),
}


@pytest.mark.parametrize("leg", sorted(LEGS))
def test_a_leg_refuses_a_pair_without_matrices(leg: str, micro_pair: Path, tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer(micro_pair / "models/target"), without_matrices()
    model.config.num_hidden_layers = 0
    model.resize_token_embeddings(len(tokenizer))
    save_model(tmp_path / "model", model, tokenizer, torch.float32, {})
    measure, texts = LEGS[leg]
    with pytest.raises(ValueError, match="must have a matrix that quantizers touch"):
        measure(tmp_path / "model", tmp_path / "model", ["int4-g64"], micro_pair / "corpus" / texts)


def test_straight_through_training_computes_with_the_rounded_matrices() -> None:
    model = narrow_gpt2()
    before = state_of(model)
    seen: dict[str, Any] = {}

    def backward(loss: Any) -> None:
        seen.update(state_of(model))

    zero = torch.zeros(())
    losses = Losses(forget=lambda: zero, retain=None, both=lambda: (zero, zero), backward=backward)
    StraightThroughStep(("int4-g64",), 0).gradients(model, losses)
    for name, w in before.items():
        expected = round_trip(w.numpy().T.copy(), format_named("int4-g64")).T if in_blocks(name) else w.numpy()
        assert np.array_equal(seen[name].numpy(), expected), name
    assert all(torch.equal(w, before[name]) for name, w in state_of(model).items())


def test_a_push_crosses_cells_along_the_inputs() -> None:
    """Each weight that is moved changes its own value in the format and no other."""
    task, method = micro_task(), METHODS["NPO_GDR_push"]
    model = narrow_gpt2(vocab_size=VOCABULARY)
    before = state_of(model)
    settings = method.settings(format="int4-row", share=0.02, retain_budget=1.0)
    moved = push(model, task, settings_of(task, settings), settings)
    after, shell = state_of(model), Shell(model, None)
    q, q_new = (shell.quantized(state, "int4-row") for state in (before, after))
    assert 0 < moved == sum(int((after[name] != before[name]).sum()) for name in shell.names)
    for name in shell.names:
        assert torch.equal(q[name] != q_new[name], before[name] != after[name])


def test_a_pilot_records_blocks_along_the_inputs() -> None:
    model = narrow_gpt2()
    weights = {name: p for name, p in sorted(model.named_parameters()) if in_blocks(name)}
    recorder = GradientRecorder(model, blocks=10**6)
    for p in model.parameters():
        p.grad = 3 * p.detach()
    recorder(model, 1e-3)
    found = recorder.recorded()
    rows = np.concatenate([p.detach().numpy().T.reshape(-1, BLOCK) for p in weights.values()])
    largest = [np.repeat(np.abs(p.detach().numpy()).max(0), p.shape[0] // BLOCK) for p in weights.values()]
    assert np.array_equal(found.weights, rows)
    assert np.array_equal(found.gradients[0], 3 * rows)
    assert np.array_equal(found.row_absmax, np.concatenate(largest))

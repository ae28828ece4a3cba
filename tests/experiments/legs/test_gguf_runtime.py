"""GGUF files that llama.cpp runs, beside the models of transformers that they were written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")
gguf = pytest.importorskip("gguf", reason="the files need unforgotten[gguf]")
pytest.importorskip("llama_cpp", reason="the runtime needs llama-cpp-python")

from transformers import AutoModelForCausalLM, PreTrainedModel

from unforgotten.audit.run import audit_pair
from unforgotten.audit.verdict.legs import Ran
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.llama_cpp import LlamaCpp, llama_cpp_model, llama_cpp_name
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.legs.real_runtime import check_runtime, load_real
from unforgotten.experiments.models import scoring
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.generation import generate
from unforgotten.experiments.models.sampling import Drawing
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.scoring import next_logits, read_batch, token_scores
from unforgotten.experiments.quantizers.llama_cpp import quantize_gguf

HALF = 2.0**-11
"""Unit roundoff of float16, in which llama.cpp keeps keys and values."""
LOGITS = 4 * HALF
"""Of logits below 2 from one layer whose keys and values are each rounded so."""
ORDER = 64 * 64 * 2.0**-24
"""Of the same, where only the order of float32 sums differs."""


def write_gguf(folder: Path, path: Path) -> Path:
    """Write a Llama of transformers as a GGUF file in float32, its vocabulary without texts."""
    model = load_model(folder)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        key, x = names.get_name(name, (".weight",)), weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            x = x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(key, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folders(micro_pair: Path) -> tuple[Path, Path]:
    return micro_pair / "models/target", micro_pair / "models/unlearned"


@pytest.fixture(scope="module")
def files(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("gguf")
    target, unlearned = (write_gguf(folder, root / f"{folder.name}.gguf") for folder in folders)
    return str(target), str(unlearned)


@pytest.fixture(scope="module")
def plain(folders: tuple[Path, Path]) -> PreTrainedModel:
    return load_model(folders[0]).eval()


@pytest.fixture(scope="module")
def run(files: tuple[str, str], plain: PreTrainedModel) -> PreTrainedModel:
    return llama_cpp_model(files[0], plain)


EIGHT_BITS = 2.0**-8
"""Of a loss, where the inputs of quantized layers are rounded to 8 bits."""
TEXTS = [[1, 5, 9, 300, 12], [1, 7], [1, *range(20, 80)], [1, 11, 12, 13, 399, 5, 6]]


def test_logits_are_those_of_transformers_and_of_no_other_model(
    run: PreTrainedModel, plain: PreTrainedModel, folders: tuple[Path, Path]
) -> None:
    batch = pad(TEXTS, 0)
    with torch.no_grad():
        ours, theirs = next_logits(run, batch), next_logits(plain, batch)
        other = next_logits(load_model(folders[1]).eval(), batch)
    real = batch.attention_mask.bool()
    assert float((ours - theirs)[real].abs().max()) <= LOGITS
    assert float((ours - other)[real].abs().max()) > LOGITS
    assert not ours[~real].any()


def test_a_text_in_windows_scores_as_in_one_pass(run: PreTrainedModel) -> None:
    batch = pad(TEXTS[2:], 0)
    whole = read_batch(run, batch, 1000)
    parts = read_batch(run, batch, 7)
    assert whole.shape == parts.shape
    assert float((whole - parts).abs().max()) <= LOGITS
    again = read_batch(run, batch, 1000)  # nothing of the windows is left
    assert float((whole - again).abs().max()) <= ORDER


def test_scores_come_in_the_order_of_the_texts(
    run: PreTrainedModel, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * 400 * 20)
    found, wanted = token_scores(run, TEXTS, 8), token_scores(plain, TEXTS, 8)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= 2 * LOGITS


@pytest.mark.parametrize("drawing", [None, Drawing(temperature=1.0, seed=3)])
def test_each_generated_token_is_the_likeliest_there(
    run: PreTrainedModel, plain: PreTrainedModel, folders: tuple[Path, Path], drawing: Drawing | None
) -> None:
    tokenizer = load_tokenizer(folders[0])
    found = generate(run, TEXTS, tokenizer, 8, 2, drawing=drawing)
    assert [len(row) for row in found] == [len(row) for row in generate(run, TEXTS, tokenizer, 8, 4, drawing=drawing)]
    for prompt, row in zip(TEXTS, found, strict=True):
        assert 0 < len(row) <= 8
        noise = drawing.noise([prompt]) if drawing else None
        for i, token in enumerate(row):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *row[:i]]])
                scores = plain(input_ids=ids).logits[:, -1]
            scores = noise(ids, scores) if noise else scores
            assert float(scores.max() - scores[0, token]) <= 2 * LOGITS


def test_both_legs_run_the_files_that_llama_cpp_wrote(
    folders: tuple[Path, Path], files: tuple[str, str], micro_pair: Path, tmp_path: Path
) -> None:
    quantized = tuple(str(tmp_path / f"{Path(file).stem}-q4_0.gguf") for file in files)
    for file, out in zip(files, quantized, strict=True):
        quantize_gguf(Path(file), Path(out), "q4_0")
    texts = micro_pair / "corpus/privleak/forget.json"
    output = output_leg(*folders, ["gguf:Q4_0"], texts, real=(quantized[0], quantized[1]))
    behaviour = behaviour_leg(
        *folders, ["gguf:Q4_0"], micro_pair / "corpus", items=3, decompose=False, real=(quantized[0], quantized[1])
    )
    for leg in (output, behaviour):
        assert [row["format"] for row in leg["formats"]] == ["gguf:Q4_0", "deployed"]
        assert leg["formats"][-1].get("ran") == Ran(
            dtype="float32", devices=["cpu"], runtime=llama_cpp_name(), rounded=[]
        )
    for name, other in (("Q(target)", "Q(unlearned)"), ("Q(unlearned)", "Q(target)")):
        simulated, real = (row["losses"][name]["value"] for row in output["formats"])
        assert 0 < abs(simulated - real) <= EIGHT_BITS
        assert abs(output["formats"][0]["losses"][other]["value"] - real) > EIGHT_BITS
    result = audit_pair(*folders, ["gguf:Q4_0"], output=lambda: output, deployed=(quantized[0], quantized[1]))
    assert llama_cpp_name() in str(result)


def test_what_llama_cpp_cannot_run_is_refused_in_one_line(
    plain: PreTrainedModel, files: tuple[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(files[0]).read_bytes()[:4000])
    check_runtime([str(broken)])
    with pytest.raises(ValueError, match=r"broken\.gguf: must be a GGUF file that llama\.cpp runs, got [^\n]+$"):
        load_real(str(broken), plain)
    other = AutoModelForCausalLM.from_config(type(plain.config)(**{**plain.config.to_dict(), "vocab_size": 401}))
    with pytest.raises(ValueError, match=r"vocab_size must be the target's, 401, got 400$"):
        LlamaCpp(files[0], other)

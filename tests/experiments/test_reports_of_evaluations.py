"""Public reports about evaluations, each with the value that is right: none may be wrong in silence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from safetensors.torch import load_file, save_file
from tokenizers import processors

from unforgotten.experiments.legs.behaviour import COPIES, behaviour_leg
from unforgotten.experiments.legs.benchmark import Settings, _fitted, read_benchmark, spelled_out
from unforgotten.experiments.legs.loaded_pair import read_state
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.metrics.rouge import SPLIT_BY, RougeTokenizer, rouge_items, tokenizer_for
from unforgotten.experiments.models import scoring
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.generation import cache_bytes, generate
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.special_tokens import count_spelled_out, start_tokens
from unforgotten.experiments.models.states import stored_state
from unforgotten.records.files import write_json

JAPANESE = "量子化すると忘れた知識が戻る。"
ROUNDING = 4 * 2.0**-11.5  # 4 sqrt(eps) of float32: plain agreement, relative


@pytest.mark.parametrize("text", [JAPANESE, "ขอบคุณมาก", "Знание возвращается", "지식이 돌아온다", "知识"])
def test_evaluate_256__identical_text_of_any_script_has_100(text: str) -> None:
    assert tokenizer_for([text, "an English text"]) == "unicode"
    assert rouge_items([text], [text], tokenizer_for([text])) == [100.0]
    assert rouge_items([text], ["something else"], "unicode") == [0.0]


def test_evaluate_256__scripts_without_spaces_are_compared_by_characters() -> None:
    assert rouge_items(["忘れた知識"], ["忘れた記憶"], "unicode") == [pytest.approx(60.0)]


@pytest.mark.parametrize(
    ("truths", "name"),
    [(["It costs £5 – a café said so."], "ascii"), (["", "1984", "..."], "ascii"), (["one", "два"], "unicode")],
)
def test_evaluate_256__muse_s_own_splitting_stands_where_it_keeps_the_texts(
    truths: list[str], name: RougeTokenizer
) -> None:
    assert tokenizer_for(truths) == name
    assert rouge_items(["A cafe, 5."], ["a CAFE 5"], "ascii") == rouge_items(["A cafe, 5."], ["a CAFE 5"], "unicode")


def test_evaluate_256__the_benchmark_says_how_it_was_split(micro_pair: Path) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    assert SPLIT_BY["ascii"] in read_benchmark(micro_pair / "corpus", tokenizer, 96).notes


def without_start(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    return tokenizer


def test_lm_eval_2676__a_start_token_stands_where_the_tokenizer_puts_one_and_once(micro_pair: Path) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    start = tokenizer.bos_token_id
    assert start_tokens(tokenizer) == [start]
    document = encode_documents(["some text"], tokenizer, 96)[0]
    assert (document[0], document.count(start)) == (start, 1)
    bare = without_start(load_tokenizer(micro_pair / "models/target"))
    assert bare.bos_token_id == start  # it has one, and does not use it
    assert start_tokens(bare) == []
    assert start not in encode_documents(["some text"], bare, 96)[0]
    bench = read_benchmark(micro_pair / "corpus", bare, 96)
    assert not any(start in prompt for prompt in bench.probes.forget_prompts + bench.probes.verbatim_prompts)


def test_lm_eval_2676__a_long_prompt_keeps_its_start_and_its_end(micro_pair: Path) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    bench = read_benchmark(micro_pair / "corpus", tokenizer, 96)
    prompt = [tokenizer.bos_token_id, *range(10, 210)]
    assert isinstance(bench.settings, Settings)
    probes = dataclasses.replace(bench.probes, forget_prompts=[prompt] * 2, forget_answers=["one", "two"])
    answer = bench.settings.evaluation.answer_tokens
    fitted = _fitted(probes, bench.settings, 96)[0].forget_prompts[0]
    assert fitted == [tokenizer.bos_token_id, *range(210 - (96 - answer - 1), 210)]


def test_open_unlearning_167__a_text_of_one_token_is_left_out_with_a_note(micro_pair: Path) -> None:
    bare = without_start(load_tokenizer(micro_pair / "models/target"))
    bare.eos_token = None
    bench = read_benchmark(micro_pair / "corpus", bare, 96)
    short = dataclasses.replace(bench.probes, holdout=[[5], *bench.probes.holdout])
    probes, _, notes = _fitted(short, bench.settings, 96)
    assert probes.holdout == bench.probes.holdout
    count = len(short.holdout)
    assert f"1 of {count} holdout have fewer than 2 tokens, so that none can be scored, and were left out." in notes


def test_open_unlearning_167__the_output_leg_leaves_it_out_too(micro_pair: Path, tmp_path: Path) -> None:
    for name in ("target", "unlearned"):
        folder = tmp_path / name
        folder.mkdir()
        for file in (micro_pair / "models" / name).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        bare = without_start(load_tokenizer(folder))
        bare.eos_token = None
        bare.save_pretrained(folder)
    write_json(tmp_path / "texts.json", ["a", "some more words", "and some others"])
    leg = output_leg(tmp_path / "target", tmp_path / "unlearned", ["int8-row"], tmp_path / "texts.json")
    assert leg["count"] == 2
    assert "1 texts have fewer than 2 tokens and were left out." in leg["notes"]


def test_open_unlearning_167__m3_is_undefined_with_its_reason(
    micro_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holdout texts that the retrained model finds less likely than all forget texts: its AUC is 0."""
    from unforgotten.experiments.metrics import membership

    monkeypatch.setattr(membership, "LEAST_AUC", 2.0)  # no AUC is that large
    leg = behaviour_leg(
        micro_pair / "models/target",
        micro_pair / "models/unlearned",
        ["int8-row"],
        micro_pair / "corpus",
        retrained=micro_pair / "models/retrained",
        decompose=False,
    )
    auc = leg["metrics"]["retrained"]["auc"]["value"]
    reason = (
        f"M3 is undefined: it is a percentage of the retrained model's auc, {auc:.3f}. See auc_gap, the difference."
    )
    assert reason in leg["notes"]
    assert "M3" not in leg["metrics"]["unlearned"]
    gap = leg["metrics"]["unlearned"]["auc_gap"]["value"]
    assert gap == leg["metrics"]["unlearned"]["auc"]["value"] - auc


def test_long_texts_are_scored_in_windows_as_in_one_pass(micro_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 on MUSE-News: 64 texts of 2,048 tokens in one batch were 25 GB of logits."""
    model, tokenizer = load_model(micro_pair / "models/target"), load_tokenizer(micro_pair / "models/target")
    documents = read_benchmark(micro_pair / "corpus", tokenizer, 96).probes.passages
    whole = scoring.token_scores(model, documents, 64)
    passes: list[Any] = []
    forward = model.forward

    def counted(**given: Any) -> Any:
        passes.append(given["input_ids"].shape)
        return forward(**given)

    monkeypatch.setattr(model, "forward", counted)
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * scoring.vocabulary_of(model) * 7)
    parts = scoring.token_scores(model, documents, 64)
    assert max(shape.numel() for shape in passes) <= 7
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=ROUNDING, atol=ROUNDING)


def test_prompts_are_generated_together_as_far_as_their_cache_fits(
    micro_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(micro_pair / "models/target"), load_tokenizer(micro_pair / "models/target")
    prompts = read_benchmark(micro_pair / "corpus", tokenizer, 96).probes.verbatim_prompts
    assert cache_bytes(model) == 2 * 64 * 4  # keys and values of one layer of width 64
    sizes: list[int] = []
    own: Any = model.generate

    def counted(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        return own(**given)

    monkeypatch.setattr(model, "generate", counted)
    answers = generate(model, prompts, tokenizer, 4, 64)
    assert sizes == [len(prompts)]
    longest = 4 + max(map(len, prompts))
    monkeypatch.setattr("unforgotten.experiments.models.generation.CACHE_BYTES", 2 * longest * cache_bytes(model))
    assert generate(model, prompts, tokenizer, 4, 64) == answers
    assert max(sizes[1:]) == 2


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    micro_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unforgotten.experiments.models import memory

    target = micro_pair / "models/target"
    weights = memory.count_weights(target)
    assert weights == sum(p.numel() for p in load_model(target).parameters())
    assert weights is not None
    needed = memory.BESIDE + round(weights * 6.4)
    for name, text in (
        ("meminfo", f"MemTotal: 9 kB\nMemAvailable: {needed // 1024 + 1} kB\n"),
        ("memory.max", f"{needed + 50}\n"),
        ("memory.current", "100\n"),
        ("memory.stat", "anon 7\ninactive_file 50\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes() == needed
    memory.check_memory(target, COPIES)
    (tmp_path / "memory.current").write_text("101\n")
    with pytest.raises(
        ValueError,
        match=r"target: needs 1\.0 GiB of memory, 1 float32 model, 0\.6 of a float32 one .*, got 1\.0 GiB free$",
    ):
        behaviour_leg(target, micro_pair / "models/unlearned", ["int8-row"], micro_pair / "corpus")


def copy_of(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_vllm_42624__another_configuration_is_refused_not_run_as_the_targets(micro_pair: Path, tmp_path: Path) -> None:
    folder = copy_of(micro_pair / "models/unlearned", tmp_path / "u")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"rms_norm_eps": 0.5, "dtype": "bfloat16"})
    write_json(tmp_path / "texts.json", ["some words", "some more words"])
    with pytest.raises(ValueError, match=r"u/config\.json: rms_norm_eps must be the target's, 1e-06: .*, got 0\.5$"):
        output_leg(micro_pair / "models/target", folder, ["int8-row"], tmp_path / "texts.json")


def test_vllm_51665__a_head_that_is_untied_is_not_dropped(micro_pair: Path, tmp_path: Path) -> None:
    folder = copy_of(micro_pair / "models/unlearned", tmp_path / "u")
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    model = load_model(micro_pair / "models/target")
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    assert stored_state(folder, model) is not None  # stored twice, and equal
    save_file(tensors | {"lm_head.weight": head + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert stored_state(folder, model) is None
    with pytest.raises(
        ValueError, match=r"u: lm_head\.weight: must equal model\.embed_tokens\.weight, to which the target"
    ):
        read_state(folder, model)


def test_peft_1381__an_adapter_beside_merged_weights_is_not_run_as_the_merged_model(
    micro_pair: Path, tmp_path: Path
) -> None:
    folder = copy_of(micro_pair / "models/unlearned", tmp_path / "u")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(ValueError, match=r"u: must be one model for --texts or --benchmark, got an adapter"):
        behaviour_leg(micro_pair / "models/target", folder, ["int8-row"], micro_pair / "corpus")


@pytest.mark.parametrize(("truth", "said"), [("दिन", "दान"), ("की", "के"), ("กา", "กี")])
def test_evaluate_564__marks_belong_to_their_letters(truth: str, said: str) -> None:
    assert rouge_items([truth], [truth], "unicode") == [100.0]
    assert rouge_items([truth], [said], "unicode") == [0.0]


def test_lm_eval_3333__a_text_that_spells_out_its_start_has_it_once_and_the_leg_says_so(
    micro_pair: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    start, end = tokenizer.bos_token, tokenizer.eos_token
    assert encode_documents([f"{start}some text"], tokenizer, 96) == encode_documents(["some text"], tokenizer, 96)
    plain = ["some words", "some more words", f"{start}and others"]
    spelled = [*plain, f"one{end}two"]
    for name, texts, told in (("plain", plain, False), ("spelled", spelled, True)):
        write_json(tmp_path / f"{name}.json", texts)
        pair = (micro_pair / "models/target", micro_pair / "models/unlearned")
        leg = output_leg(*pair, ["int8-row"], tmp_path / f"{name}.json")
        assert (spelled_out(1) in leg["notes"]) == told
    bare = without_start(tokenizer)
    assert count_spelled_out([bare.encode(f"{start}some text")], bare) == 1
    assert count_spelled_out([[*bare.encode("some text"), bare.eos_token_id]], bare) == 0


def muse_folder(folder: Path, replaced: dict[str, Any]) -> Path:
    questions = [{"question": f"Who is number {i}?", "answer": f"Agent {i}"} for i in range(3)]
    texts = [f"The agent number {i} was seen in the town on the hill." for i in range(3)]
    parts: dict[str, Any] = {
        f"knowmem/{split}_qa{icl}": questions for split in ("forget", "retain") for icl in ("", "_icl")
    }
    parts |= {f"privleak/{split}": texts for split in ("forget", "retain", "holdout")}
    parts |= {f"raw/{split}": texts for split in ("forget", "retain1", "holdout")}
    parts["verbmem/forget"] = [{"prompt": text[:20], "gt": text[20:]} for text in texts]
    for name, content in (parts | replaced).items():
        write_json(folder / f"{name}.json", content)
    return folder


def test_lm_eval_1053__items_that_nobody_can_answer_are_left_out_with_a_note(micro_pair: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    prompts = [{"prompt": p, "gt": gt} for p, gt in (("The a", "gent"), ("", "town"), ("On", "..."), ("In", "a town"))]
    questions = [{"question": f"What is {i}?", "answer": a} for i, a in enumerate(("42", "£", "a town", ""))]
    folder = muse_folder(tmp_path, {"verbmem/forget": prompts, "knowmem/forget_qa": questions})
    bench = read_benchmark(folder, tokenizer, 96)
    assert bench.probes.verbatim_truths == ["gent", "a town"]
    assert bench.probes.forget_answers == ["42", "a town"]
    assert [len(bench.probes.verbatim_prompts), len(bench.probes.forget_prompts)] == [2, 2]
    assert [len(bench.probes.retain_prompts), len(bench.probes.retain_answers)] == [3, 3]
    no_word = "have no word that ROUGE-L counts, so that any answer gets 0, and were left out."
    assert [note for note in bench.notes if "left out" in note] == [
        "1 of 4 verbatim prompts are empty and were left out.",
        f"1 of 4 verbatim truths {no_word}",
        f"2 of 4 forget answers {no_word}",
    ]

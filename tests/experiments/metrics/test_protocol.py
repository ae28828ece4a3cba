"""M1-M4 and the losses by MUSE's protocol: tokens around texts, cuts, cues, and what models are trained on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unforgotten.experiments.config import BaseConfig, RunConfig
from unforgotten.experiments.data.muse import read_muse
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.evaluation import decompose
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.examined import Examined
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.probes import encode_training, make_probes
from unforgotten.experiments.metrics.registry import METRICS
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.batches import encode_chunks
from unforgotten.experiments.models.saved import load_model, load_tokenizer, save_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.models.tokenizer import train_tokenizer
from unforgotten.experiments.run import run
from unforgotten.records.files import write_json
from unforgotten.records.rows import read_run
from unforgotten.theory.models.fieller import recovery_interval

MICRO = Path(__file__).parents[2] / "micro.yaml"
HANG_SECONDS = 3600
BARE = ("pad_token", "eos_token")


@pytest.fixture(scope="module")
def pair(micro_pair: Path) -> tuple[Path, Path]:
    return micro_pair / "models/target", micro_pair / "models/unlearned"


@pytest.fixture(scope="module")
def tokenizer(micro_pair: Path) -> Any:
    return load_tokenizer(micro_pair / "models/target")


def test_measured_texts_have_no_end_token_and_documents_to_train_on_have(micro_pair: Path, tokenizer: Any) -> None:
    """The end token entered Min-K % and the losses; MUSE puts none."""
    config = load_config(str(MICRO), overrides=["corpus.passage_tokens=512"])
    corpus, _ = prepare_corpus(config.corpus, config.seed, micro_pair / "again")
    probes = make_probes(corpus, tokenizer, config)
    end = tokenizer.eos_token_id
    for texts in (probes.passages, probes.holdout, probes.retained):
        assert texts
        assert not any(end in text for text in texts)
    assert all(text[-1] == end for text in probes.forget + probes.retain)
    assert [text[:-1] for text in probes.retain] == probes.retained
    assert probes.passages[0] == tokenizer.encode(corpus.passages[0])


def test_prompts_end_as_muses_do_and_truths_are_128_tokens(muse: Path, tokenizer: Any) -> None:
    words = " ".join(f"town{i}" for i in range(100))
    write_json(muse / "verbmem/forget.json", [{"prompt": f"Mayor {i} of", "gt": words} for i in range(3)])
    bench = read_benchmark(muse, tokenizer, 2048)
    cue = tokenizer.encode("Answer: ", add_special_tokens=False)
    for prompt in bench.probes.forget_prompts + bench.probes.retain_prompts:
        assert prompt[-len(cue) :] == cue
    start = [tokenizer.bos_token_id]
    expected = tokenizer.encode(words)[:128]
    assert expected[:1] == start
    for truth, text in zip(bench.probes.verbatim_tokens, bench.probes.verbatim_truths, strict=True):
        assert start + truth == expected
        assert text == tokenizer.decode(truth)
    assert bench.settings.corpus.probe_tokens == 127


def test_a_run_on_all_of_muse_asks_its_prompts_and_one_on_a_sample_its_passages(muse: Path, tokenizer: Any) -> None:
    """The sample holds none of the prompts' texts, so that a target which learned it could not continue them."""
    (muse / "raw").mkdir(exist_ok=True)
    for name in ("forget", "retain1"):
        write_json(muse / f"raw/{name}.json", ["The mayor of town opened the bridge."] * 3)
    bench = read_benchmark(muse, tokenizer, 2048)
    of: dict[str, Any] = {}
    for trained_on in ("raw", "sample"):
        asked = {
            "kind": "muse",
            "path": str(muse),
            "trained_on": trained_on,
            "passages": 4,
            "holdout": 4,
            "general": 10,
        }
        config = load_config(str(MICRO), overrides=[f"corpus={json.dumps(asked)}"])
        corpus, _ = prepare_corpus(config.corpus, 0, muse.parent / "corpus")
        of[trained_on] = make_probes(corpus, tokenizer, config)
    for name in ("verbatim_prompts", "verbatim_truths", "verbatim_tokens"):
        assert getattr(of["raw"], name) == getattr(bench.probes, name)[:4]
    sample = of["sample"]
    prompted = [
        [*prompt, *truth] for prompt, truth in zip(sample.verbatim_prompts, sample.verbatim_tokens, strict=True)
    ]
    assert all(passage[: len(text)] == text for passage, text in zip(sample.passages, prompted, strict=True))


def test_documents_that_the_context_cuts_are_counted(muse: Path, tokenizer: Any) -> None:
    """They were cut before they were counted."""
    long = " ".join(["honey"] * 300)
    for name in ("forget", "holdout"):
        texts = json.loads((muse / f"privleak/{name}.json").read_text())
        write_json(muse / f"privleak/{name}.json", [long, *texts[1:]])
    bench = read_benchmark(muse, tokenizer, 160)
    for name in ("passages", "holdout"):
        assert f"1 of 6 {name} are longer than the context and were cut." in bench.notes
    assert max(map(len, bench.probes.passages)) == 160


def parroting(meter: Meter, probes: Any, runs_on: int) -> Examined:
    """A model that goes on with the truth, and then with other words."""

    class Parrot(Examined):
        def continuation_tokens(self, prompts: Any, new_tokens: int) -> list[list[int]]:
            more = [*range(50, 50 + runs_on)]
            return [[*truth, *more][:new_tokens] for truth in probes.verbatim_tokens]

    return Parrot(meter.shell.model, meter.shell.tokenizer, probes, meter.settings)


def test_a_perfect_copy_that_runs_on_scores_100(micro_pair: Path, tokenizer: Any) -> None:
    """Truths of 47-59 tokens against 64 that were generated: a perfect copy scored 0.85."""
    config = load_config(str(MICRO), overrides=["corpus.probe_tokens=64"])
    corpus, _ = prepare_corpus(config.corpus, config.seed, micro_pair / "again")
    probes = make_probes(corpus, tokenizer, config)
    shortened = [truth[: len(truth) - i % 3] for i, truth in enumerate(probes.verbatim_tokens)]
    assert len({len(truth) for truth in shortened}) > 1
    truths = [tokenizer.decode(truth) for truth in shortened]
    probes = dataclasses.replace(probes, verbatim_tokens=shortened, verbatim_truths=truths)
    meter = Meter(Shell(load_model(micro_pair / "models/target"), tokenizer), probes, config)
    assert METRICS["M1"].measure(parroting(meter, probes, 20), probes, config).value == 100.0


def raw(folder: Path, **files: str) -> CorpusConfig:
    for name, text in files.items():
        (folder / f"raw/{name}.txt").write_text(text)
    return CorpusConfig(kind="muse", path=folder, passages=4, holdout=4)


def test_a_run_on_muse_is_trained_on_all_of_its_raw_texts(muse: Path, tokenizer: Any) -> None:
    """`raw/retain1.txt` was ignored without a word, and models were trained on the sample of 100 texts."""
    config = raw(muse, forget="The forget text. " * 90, retain1="The retain text. " * 40)
    corpus, origin = prepare_corpus(config, 0, muse)
    assert origin == f"muse:{muse}"
    assert len(corpus.passages) == 4
    chunks = encode_training(corpus, corpus.forget + corpus.retain, tokenizer, 32)
    start, texts = [tokenizer.bos_token_id], ("The forget text. " * 90, "The retain text. " * 40)
    assert all(chunk[:1] == start and len(chunk) <= 32 for chunk in chunks)
    bodies = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert [token for chunk in chunks for token in chunk[1:]] == bodies[0] + bodies[1]
    assert len(chunks) == sum(-(-len(body) // 31) for body in bodies)
    assert corpus.retained == tuple(json.loads((muse / "privleak/retain.json").read_text()))[:4]


def test_documents_of_raw_are_joined_as_in_muses_text(muse: Path) -> None:
    config = raw(muse, retain1="One.\n\nTwo.\n\nThree.")
    write_json(muse / "raw/forget.json", ["First.", "", "Second."])  # MUSE-News has an empty one among 889
    assert read_muse(muse, config).forget == ("First.\n\nSecond.",)
    (muse / "privleak/retain.json").unlink()
    assert read_muse(muse, config).retained == ("One.", "Two.", "Three.")
    write_json(muse / "raw/retain1.json", ["Four.", "Five."])
    assert read_muse(muse, config).retained == ("Four.", "Five.")
    for bad in ([""], ["a", 1]):
        write_json(muse / "raw/forget.json", bad)
        with pytest.raises(ValueError, match=r"raw/forget\.json: must be a list of texts that are not empty"):
            read_muse(muse, config)


@pytest.mark.parametrize("name", ["forget", "retain1"])
def test_a_raw_text_that_is_missing_is_asked_for_by_name(name: str, muse: Path) -> None:
    config = raw(muse, forget="a", retain1="b")
    (muse / f"raw/{name}.txt").unlink()
    with pytest.raises(ValueError, match=rf"raw/{name}\.txt: must exist for training.*trained_on=sample"):
        read_muse(muse, config)
    (muse / f"raw/{name}.txt").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=rf"raw/{name}\.txt: must be a text in UTF-8"):
        read_muse(muse, config)
    sample = config.model_copy(update={"trained_on": "sample"})
    corpus, origin = prepare_corpus(sample, 0, muse)
    assert (corpus.forget, corpus.running, origin) == (corpus.passages, False, f"muse-sample:{muse}")


def test_a_run_on_muses_layout_goes_through(muse: Path, micro_pair: Path, tmp_path: Path) -> None:
    raw(muse, forget="The mayor opened the bridge.\n\n" * 60, retain1="The river rose in spring.\n\n" * 60)

    corpus = {"kind": "muse", "path": str(muse), "passages": 6, "holdout": 6, "passage_tokens": 48}
    own: dict[str, Any] = {"only_methods": ["NPO_GDR"], "storages": ["fp32"], "formats": ["int4-g64"]}
    own["base"] = {"kind": "directory", "path": str(micro_pair / "models/target")}
    run(load_config(str(MICRO), settings={**own, "corpus": corpus}), tmp_path / "run", resume=False)
    rows = read_run(tmp_path / "run")
    assert {row.corpus for row in rows.rows} == {f"muse:{muse}"}
    for metric in ("M1", "M2", "M4", "retain_loss", "M3"):
        row = rows.get(metric, "unlearned", "NPO_GDR", "fp32", "int4-g64")
        assert row is not None
        assert row.n is not None
        assert row.n >= (5 if metric == "M1" else 6)  # its own prompts are five


def test_chunks_need_room_for_a_token(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="longest must be above 1 start tokens, got longest=1"):
        encode_chunks(["text"], tokenizer, 1)


def test_a_run_on_muse_has_muses_settings_where_its_profile_says_nothing(tmp_path: Path) -> None:
    tree = yaml.safe_load(MICRO.read_text())
    tree["corpus"] = {"kind": "muse", "path": str(tmp_path), "passage_tokens": 64}
    tree["evaluation"] = {"shots": 1}
    config = RunConfig.model_validate(tree)
    assert (config.evaluation.answer_cue, config.evaluation.answer_tokens) == ("Answer: ", 32)
    assert (config.corpus.probe_tokens, config.corpus.passage_tokens, config.evaluation.shots) == (128, 64, 1)
    assert load_config(str(MICRO)).evaluation.answer_cue == "Answer:"
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_the_forget_loss_is_among_what_is_recovered(micro_pair: Path, pair: tuple[Path, Path], tokenizer: Any) -> None:
    config = load_config(str(MICRO))
    corpus, _ = prepare_corpus(config.corpus, config.seed, micro_pair / "again")
    shell = Shell(load_model(pair[0]), tokenizer)
    meter = Meter(shell, make_probes(corpus, tokenizer, config), config)
    states = dict(state_of(load_model(pair[0]))), dict(state_of(load_model(pair[1])))
    states[1]["model.norm.weight"] *= 8  # every text becomes unlikelier, so that there is something to recover
    known = {
        name: {k: m.items or () for k, m in meter.measure(shell.quantized(state, form)).items()}
        for name, state, form in (
            ("target", states[0], "none"),
            ("unlearned", states[1], "none"),
            ("Q(target)", states[0], "int4-g64"),
            ("Q(unlearned)", states[1], "int4-g64"),
        )
    }
    four = (*states, shell.quantized(states[0], "int4-g64"), shell.quantized(states[1], "int4-g64"))
    rows = {row.metric: row for row in decompose(meter, four, "int4-g64", known)}
    after, quantized, reached = (
        np.mean(known[name]["forget_loss"]) for name in ("unlearned", "Q(unlearned)", "Q(target)")
    )
    row = rows["rho_forget_loss"]
    assert row.interval is not None
    assert row.value == pytest.approx(float((quantized - after) / (reached - after)))
    assert row.interval[0] <= row.value <= row.interval[1]
    three = (np.array(known[name]["forget_loss"]) for name in ("unlearned", "Q(unlearned)", "Q(target)"))
    told = recovery_interval(*three)
    assert (row.value, row.interval, row.stderr) == (told.rho, (told.low, told.high), None)


def bare(vocabulary: Any) -> Any:
    """The tokenizer without pad and end token; its models still have a start token."""
    backend = vocabulary.backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def llama(vocabulary: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def test_a_llama_without_pad_and_end_token_is_audited(micro_pair: Path, muse: Path, tmp_path: Path) -> None:
    """Llama-2, Llama-3 and Mistral have no pad token: the benchmark ended in a TypeError."""
    tokenizer = bare(load_tokenizer(micro_pair / "models/target"))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (None, None)
    for seed, name in enumerate(("target", "unlearned")):
        save_model(tmp_path / name, llama(len(tokenizer), seed), tokenizer, torch.float32, {})
    settings = tmp_path / "unlearned/generation_config.json"
    write_json(settings, {"repetition_penalty": 1.3, "do_sample": True})
    call = [sys.executable, "-m", "unforgotten.cli", "audit", str(tmp_path / "target"), str(tmp_path / "unlearned")]
    more = ["--formats", "int4-g32", "--benchmark", str(muse), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run([*call, *more], capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode in (0, 1), done.stderr
    leg = json.loads(done.stdout)["behaviour"]
    assert {"M1", "M2", "M4", "forget_loss", "auc"} <= set(leg["formats"][0]["metrics"]["Q(unlearned)"])
    note = (
        "The unlearned model has generation settings of its own that are not used, for M1, M2 and M4 are greedy: "
        "do_sample=True, repetition_penalty=1.3."
    )
    assert note in leg["notes"]
    assert not any("The target model has generation settings" in other for other in leg["notes"])


def test_a_checkpoints_settings_leave_the_leg_alone(micro_pair: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    plain = behaviour_leg(*pair, ["int4-g64"], micro_pair / "corpus", decompose=False)
    target = tmp_path / "target"
    shutil.copytree(pair[0], target)
    write_json(target / "generation_config.json", {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1})
    spoiled = behaviour_leg(target, pair[1], ["int4-g64"], micro_pair / "corpus", decompose=False)
    assert spoiled["metrics"] == plain["metrics"]
    assert spoiled["formats"] == plain["formats"]


def test_a_llama_without_pad_and_end_token_is_run(tmp_path: Path) -> None:
    config = load_config(
        str(MICRO), settings={"only_methods": ["NPO_KLR"], "storages": ["bf16"], "formats": ["int4-g64"]}
    )
    corpus, _ = prepare_corpus(config.corpus, 0, tmp_path / "corpus")
    model = TINY.model(config.base.model_copy(update={"layers": 2}), 0)
    model.config.pad_token_id = model.config.eos_token_id = None
    tokenizer = bare(train_tokenizer(corpus.general, TINY.shape_of(config.base).vocabulary))
    save_model(tmp_path / "base", model, tokenizer, torch.float32, {})
    base = BaseConfig(kind="directory", path=tmp_path / "base")
    folder = tmp_path / "run"
    run(config.model_copy(update={"base": base}), folder, resume=False)
    rows = read_run(folder)
    for metric in ("M1", "M2", "M4", "forget_loss", "auc"):
        row = rows.get(metric, "unlearned", "NPO_KLR", "bf16", "int4-g64")
        assert row is not None
        assert row.value is not None

"""Output and behaviour legs on models of no size: what they hold, what is certain of them, and every bad input."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.audit.legs import BehaviourLeg, OutputLeg
from unforgotten.audit.verdict import decide
from unforgotten.experiments.base import tiny_llama, train_tokenizer
from unforgotten.experiments.benchmark import read_benchmark
from unforgotten.experiments.checkpoints import save_model
from unforgotten.experiments.config import BaseConfig, load_config
from unforgotten.experiments.corpus import prepare_corpus
from unforgotten.experiments.evaluation import Bench, behaviour, state_of
from unforgotten.experiments.known_models import constructed, same
from unforgotten.experiments.pair import open_model_pair
from unforgotten.experiments.pair_behaviour import behaviour_leg
from unforgotten.experiments.pair_output import output_leg
from unforgotten.experiments.storage import write_json, write_text
from unforgotten.experiments.texts import read_texts

MICRO = Path(__file__).parent / "micro.yaml"
FORMATS = ("int4-g64", "nf4-b64")
BASE = BaseConfig(vocabulary=400, width=64, feed_forward=64, layers=1, heads=2, positions=96)
U32 = 2.0**-24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of a run: corpus, config.json, and a target with two models that moved from it."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(str(MICRO))
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    tokenizer = train_tokenizer(corpus.general, BASE.vocabulary)
    for name, scale in (("target", 0.0), ("unlearned", 0.02), ("retrained", 0.05)):
        model = tiny_llama(BASE, seed=0)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(scale * torch.randn(p.shape, generator=generator))
        save_model(folder / "models" / name, model, tokenizer, torch.float32, {})
    return folder


@pytest.fixture(scope="module")
def pair(run: Path) -> tuple[Path, Path]:
    return run / "models/target", run / "models/unlearned"


@pytest.fixture(scope="module")
def written(run: Path, pair: tuple[Path, Path]) -> OutputLeg:
    return output_leg(*pair, FORMATS, run / "corpus/privleak/forget.json")


@pytest.fixture(scope="module")
def done(run: Path, pair: tuple[Path, Path]) -> BehaviourLeg:
    return behaviour_leg(*pair, FORMATS, run / "corpus", retrained=run / "models/retrained")


def test_legs_are_json_without_nan(written: OutputLeg, done: BehaviourLeg) -> None:
    for leg in (written, done):
        assert json.loads(json.dumps(leg, allow_nan=False)) == leg


def test_every_format_has_every_row(written: OutputLeg, done: BehaviourLeg) -> None:
    assert [f["format"] for f in written["formats"]] == list(FORMATS)
    assert [f["format"] for f in done["formats"]] == list(FORMATS)
    for f in written["formats"]:
        assert {r["metric"] for r in f["recoveries"]} == {"loss", "accuracy", "probability"}
        assert {e["metric"] for e in f["effects"]} == {"loss", "accuracy", "probability"}
        assert len(f["distances"]) == 4
    for g in done["formats"]:
        assert {r["metric"] for r in g["recoveries"]} == {"M1", "M2", "forget_loss"}
        assert set(g["metrics"]["Q(unlearned)"]) >= {"M1", "M2", "M3", "M4", "auc"}
    assert decide("unclear", written, done)["overall"] in ("survives", "undone", "undecided")


def test_decomposition_sums_up(written: OutputLeg, done: BehaviourLeg) -> None:
    for effects in (f["effects"] for leg in (written, done) for f in leg["formats"]):
        for e in effects:
            lost, parts = e["lost"], (e["gating"]["value"], e["base_shift"]["value"])
            # 10 sums of numbers up to 100 in float64 an item
            assert lost["value"] == pytest.approx(sum(parts), abs=10 * 100 * 2.0**-53 * lost["n"])


def test_distances_agree_with_t15(written: OutputLeg) -> None:
    """Certified tokens agree, and a bound on total variation is in [0, 1] and not below the mean of KL's own."""
    for f in written["formats"]:
        for d in f["distances"]:
            assert 0 <= d["kl"]["value"]
            assert 0 <= d["tv_upper_bound"] <= 1
            # `certified` is a share of tokens and `agreement` a mean over texts: with texts of one length they compare
            assert d["certified"] <= 1


def test_certified_tokens_agree_and_bound_the_accuracy(run: Path, pair: tuple[Path, Path]) -> None:
    """On texts of one length: certified <= agreement, and accuracies differ by 1 - agreement at most."""
    texts = [json.loads((run / "corpus/privleak/forget.json").read_text())[0]] * 2
    path = run / "twice.json"
    write_json(path, texts)
    leg = output_leg(*pair, FORMATS, path)
    for f in leg["formats"]:
        d = next(d for d in f["distances"] if d["first"] == "unlearned")
        assert d["certified"] <= d["agreement"]["value"]
        r = next(r for r in f["recoveries"] if r["metric"] == "accuracy")
        change = abs(r["quantized_unlearned"] - r["unlearned"])
        assert change <= 1 - d["agreement"]["value"] + 8 * 2.0**-53
        p = next(r for r in f["recoveries"] if r["metric"] == "probability")
        assert 0 < p["unlearned"] < 1


def test_output_losses_are_the_models_own(
    run: Path, pair: tuple[Path, Path], written: OutputLeg
) -> None:
    """Against transformers' own loss, one text at a time."""
    loaded = open_model_pair(*pair)
    texts = read_texts(run / "corpus/privleak/forget.json")
    losses = []
    for text in texts:
        ids = loaded.tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([[1, *ids, 2][: loaded.context]])
        with torch.no_grad():
            losses.append(float(loaded.with_state(loaded.unlearned)(ids, labels=ids).loss))
    # float32 logits of a batch, padded or not: sums of width 64 and vocabulary 400 in another order
    slack = 64 * U32 * (1 + max(losses)) * 16
    assert written["losses"]["unlearned"]["value"] == pytest.approx(np.mean(losses), abs=slack)
    assert written["cut"] == sum(
        len(loaded.tokenizer.encode(t, add_special_tokens=False)) + 2 > loaded.context
        for t in texts
    )
    assert written["cut"] > 0
    assert written["notes"]


def test_behaviour_is_what_a_run_measures(
    run: Path, pair: tuple[Path, Path], done: BehaviourLeg
) -> None:
    """M1, M2, M4 and forget_loss of the run's own evaluation, to the last bit."""
    loaded = open_model_pair(*pair)
    config = load_config(str(MICRO))
    bench_of_audit = read_benchmark(run / "corpus", loaded.tokenizer, loaded.context)
    bench = Bench(loaded.model, loaded.tokenizer, bench_of_audit.probes, config)
    own = {
        m.metric: m.value for m in behaviour(bench, state_of(loaded.with_state(loaded.unlearned)))
    }
    seen = done["metrics"]["unlearned"]
    assert {m: seen[m]["value"] for m in own} == own
    assert seen["M3"]["n"] == 12


def test_m3_needs_the_retrained_model(run: Path, pair: tuple[Path, Path]) -> None:
    leg = behaviour_leg(*pair, FORMATS[:1], run / "corpus", decompose=False)
    assert "M3" not in leg["metrics"]["unlearned"]
    assert "auc" in leg["metrics"]["unlearned"]
    assert any("M3" in note for note in leg["notes"])
    assert leg["formats"][0]["effects"] == []
    with_it = behaviour_leg(
        *pair, FORMATS[:1], run / "corpus", retrained=run / "models/retrained", decompose=False
    )
    assert with_it["metrics"]["retrained"]["M3"]["value"] == 0.0


def test_a_model_that_did_not_move_has_nothing_to_come_back(run: Path) -> None:
    target = run / "models/target"
    written = output_leg(target, target, FORMATS, run / "corpus/privleak/forget.json")
    done = behaviour_leg(target, target, FORMATS, run / "corpus", decompose=False)
    assert decide("no update", written, done)["overall"] == "undecided"
    first = written["formats"][0]["distances"]
    between = next(d for d in first if d["first"] == "Q(target)" and d["second"] == "Q(unlearned)")
    assert between["kl"]["value"] == 0
    assert between["agreement"]["value"] == 1
    assert (
        between["tv_upper_bound"] < 1e-4
    )  # the root of the slack for rounding, (V + 8) 2^-53 of nothing


def test_constructed_pairs_are_what_they_claim(pair: tuple[Path, Path]) -> None:
    loaded = open_model_pair(*pair)
    for name in FORMATS:
        clamped, on_grid = constructed(loaded, name)
        assert same(
            loaded.quantized(clamped.unlearned, name), loaded.quantized(loaded.target, name)
        )
        assert not same(clamped.unlearned, loaded.target)
        assert same(loaded.quantized(on_grid.unlearned, name), on_grid.unlearned)
        assert same(loaded.quantized(on_grid.target, name), on_grid.target)
        assert not same(on_grid.unlearned, on_grid.target)


def test_a_clamped_pair_gives_back_everything(run: Path, pair: tuple[Path, Path]) -> None:
    """Q(unlearned) = Q(target), so rho = 1 wherever it is defined, and the KL between them is 0."""
    loaded = open_model_pair(*pair)
    made = next(constructed(loaded, FORMATS[0]))
    folder = run / "models/clamped"
    loaded.model.load_state_dict(made.unlearned)
    save_model(folder, loaded.model, loaded.tokenizer, torch.float32, {})
    leg = output_leg(pair[0], folder, FORMATS[:1], run / "corpus/privleak/forget.json")
    (only,) = leg["formats"]
    between = next(d for d in only["distances"] if d["first"] == "Q(target)")
    assert between["kl"]["value"] == 0
    for r in only["recoveries"]:
        assert r["quantized_unlearned"] == r["quantized_target"]
        assert r["rho"] is None or r["rho"] == 1.0


def muse(folder: Path) -> Path:
    """A directory in MUSE's layout, with its own verbatim prompts."""
    texts = [f"The mayor of town {i} opened the bridge and spoke of honey." for i in range(6)]
    pairs = [{"question": f"Who opened bridge {i}?", "answer": "the mayor"} for i in range(6)]
    for name in ("forget", "holdout", "retain"):
        write_json(folder / f"privleak/{name}.json", texts)
    for name in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        write_json(folder / f"knowmem/{name}.json", pairs)
    prompts = [{"prompt": "The mayor of", "gt": "town opened the bridge"} for _ in range(5)]
    write_json(folder / "verbmem/forget.json", prompts)
    return folder


def test_muse_layout_is_measured_by_its_own_protocol(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    folder = muse(tmp_path / "muse")
    leg = behaviour_leg(*pair, FORMATS[:1], folder, decompose=False)
    assert leg["metrics"]["target"]["M1"]["n"] == 5
    assert leg["metrics"]["target"]["M2"]["n"] == 6
    assert any("cut" in note for note in leg["notes"])  # ten examples do not fit 96 tokens


TEXT_FILES: dict[str, tuple[str, str]] = {
    "empty": ("t.txt", "\n\n"),
    "not a list": ("t.json", '{"a": 1}'),
    "malformed json": ("t.json", "[1,"),
    "malformed line": ("t.jsonl", '{"text": "a"}\n{"text":'),
    "line without text": ("t.jsonl", '{"words": "a"}'),
    "empty text": ("t.json", '["a", ""]'),
    "number": ("t.json", "[1, 2]"),
    "deep": ("t.json", "[" * 100_000),
    "one text": ("t.txt", "only one"),
}


@contextlib.contextmanager
def one_line(begins: Path) -> Iterator[None]:
    """What is in the block ends in a ValueError of one line that begins with the path."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(begins))}") as caught:
        yield
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", TEXT_FILES)
def test_bad_texts_end_in_one_line(tmp_path: Path, pair: tuple[Path, Path], kind: str) -> None:
    name, content = TEXT_FILES[kind]
    path = tmp_path / name
    path.write_text(content)
    with one_line(path):
        output_leg(*pair, FORMATS, path)


def test_missing_texts_and_other_bytes_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("absent.txt", "latin.txt", "."):
        with one_line(tmp_path / name):
            read_texts(tmp_path / name)


def test_texts_in_all_layouts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n"two"\n')
    (tmp_path / "a.json").write_text('["one", {"text": "two"}]')
    assert {tuple(read_texts(tmp_path / f"a.{x}")) for x in ("txt", "jsonl", "json")} == {
        ("one", "two")
    }


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def other_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["zzz"] = vocabulary.pop(last)
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def custom_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    config["auto_map"] = {"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "x.py").write_text("raise SystemExit('ran')")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


SPOILED: list[Callable[[Path], None]] = [
    broken_tokenizer, other_vocabulary, pickle_alone, no_config, bad_config, custom_code, truncated,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_models_end_in_one_line(
    tmp_path: Path, run: Path, pair: tuple[Path, Path], spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(pair[1], folder)
    spoil(folder)
    with one_line(folder):
        output_leg(pair[0], folder, FORMATS, run / "corpus/privleak/forget.json")


def test_one_tokenizer_is_enough_and_none_is_not(
    tmp_path: Path, run: Path, pair: tuple[Path, Path], written: OutputLeg
) -> None:
    bare = [tmp_path / "target", tmp_path / "unlearned"]
    for source, folder in zip(pair, bare, strict=True):
        shutil.copytree(source, folder)
        no_tokenizer(folder)
    texts = run / "corpus/privleak/forget.json"
    assert output_leg(bare[0], pair[1], FORMATS, texts)["formats"] == written["formats"]
    with one_line(bare[0]):
        output_leg(bare[0], bare[1], FORMATS, texts)


def test_other_shapes_end_in_one_line(tmp_path: Path, run: Path, pair: tuple[Path, Path]) -> None:
    tokenizer = open_model_pair(*pair).tokenizer
    wider = BASE.model_copy(update={"feed_forward": 128})
    save_model(tmp_path / "wide", tiny_llama(wider, 0), tokenizer, torch.float32, {})
    with one_line(tmp_path / "wide"):
        output_leg(pair[0], tmp_path / "wide", FORMATS, run / "corpus/privleak/forget.json")
    with one_line(tmp_path / "wide"):
        behaviour_leg(*pair, FORMATS, run / "corpus", retrained=tmp_path / "wide")


def test_an_unknown_format_is_named(run: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="int5-x"):
        output_leg(*pair, ["int5-x"], run / "corpus/privleak/forget.json")


def test_models_that_are_not_finite_are_refused(
    tmp_path: Path, run: Path, pair: tuple[Path, Path]
) -> None:
    loaded = open_model_pair(*pair)
    state: dict[str, Any] = dict(loaded.target)
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], float("nan"))
    loaded.model.load_state_dict(state)
    save_model(tmp_path / "nan", loaded.model, loaded.tokenizer, torch.float32, {})
    with pytest.raises(ValueError, match="finite"):
        output_leg(pair[0], tmp_path / "nan", FORMATS, run / "corpus/privleak/forget.json")


def spoil_json(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


BENCHMARKS: dict[str, Callable[[Path], None]] = {
    "a missing file": lambda folder: (folder / "knowmem/forget_qa.json").unlink(),
    "malformed json": spoil_json("privleak/forget.json", "["),
    "an empty list": spoil_json("privleak/holdout.json", "[]"),
    "a list of numbers": spoil_json("privleak/forget.json", "[1]"),
    "questions without answers": spoil_json("knowmem/retain_qa.json", '[{"question": "a"}]'),
    "prompts without truths": spoil_json("verbmem/forget.json", '[{"prompt": "a"}]'),
    "no prompt": spoil_json("verbmem/forget.json", "[]"),
    "one passage": spoil_json("privleak/forget.json", '["a b c d"]'),
    "a run without config": lambda folder: write_json(folder / "raw/general.json", ["a"]),
}


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_bad_benchmarks_end_in_one_line(tmp_path: Path, pair: tuple[Path, Path], kind: str) -> None:
    folder = muse(tmp_path / "muse")
    BENCHMARKS[kind](folder)
    with one_line(tmp_path):
        behaviour_leg(*pair, FORMATS, folder)


def test_a_missing_benchmark_and_a_foreign_config_end_in_one_line(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(ValueError, match="layout"):
        behaviour_leg(*pair, FORMATS, tmp_path / "absent")
    folder = muse(tmp_path / "muse")
    write_json(folder / "raw/general.json", ["a"])
    (tmp_path / "config.json").write_text('{"profile": 3}')
    with one_line(tmp_path / "config.json"):
        behaviour_leg(*pair, FORMATS, folder)

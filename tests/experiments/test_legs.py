"""Output and behaviour legs on models of no size: what they hold, and what is certain of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg
from unforgotten.audit.verdict.rule import decide
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.behaviour import DECOMPOSED, behaviour_leg
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.loaded_pair import open_model_pair
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.models.saved import save_model
from unforgotten.experiments.models.shell import state_of
from unforgotten.experiments.studies.pairs.audit_truth_models import constructed, same
from unforgotten.records.files import write_json

MICRO = Path(__file__).parents[1] / "micro.yaml"
FORMATS = ("int4-g64", "nf4-b64")
U32 = 2.0**-24
EFFECT_ROUNDING = 10 * 100 * 2.0**-53  # ten sums of numbers up to 100 in float64, an item


@pytest.fixture(scope="module")
def run(micro_pair: Path) -> Path:
    return micro_pair


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
            assert lost["value"] == pytest.approx(sum(parts), abs=EFFECT_ROUNDING * lost["n"])


def test_distances_are_in_their_ranges(written: OutputLeg) -> None:
    for f in written["formats"]:
        for d in f["distances"]:
            assert 0 < d["kl"]["value"]
            assert 0 < d["tv_upper_bound"] <= 1
            assert 0 <= d["certified"] <= 1
            assert 0 <= d["agreement"]["value"] <= 1


def test_certified_tokens_agree_and_bound_the_accuracy(run: Path, pair: tuple[Path, Path]) -> None:
    """On texts of one length, the context's: certified <= agreement, and accuracies differ by 1 - agreement at most."""
    texts = [text * 9 for text in json.loads((run / "corpus/privleak/forget.json").read_text())[:2]]
    path = run / "long.json"
    write_json(path, texts)
    leg = output_leg(*pair, FORMATS, path)
    assert leg["cut"] == 2
    for f in leg["formats"]:
        d = next(d for d in f["distances"] if d["first"] == "unlearned")
        assert d["certified"] <= d["agreement"]["value"]
        r = next(r for r in f["recoveries"] if r["metric"] == "accuracy")
        change = abs(r["quantized_unlearned"] - r["unlearned"])
        assert change <= 1 - d["agreement"]["value"] + 8 * 2.0**-53
        p = next(r for r in f["recoveries"] if r["metric"] == "probability")
        assert 0 < p["unlearned"] < 1


def test_output_losses_are_the_models_own(run: Path, pair: tuple[Path, Path], written: OutputLeg) -> None:
    """Against transformers' own loss, one text at a time."""
    loaded = open_model_pair(*pair)
    texts = read_texts(run / "corpus/privleak/forget.json")
    losses = []
    for text in texts:
        ids = loaded.shell.tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([[1, *ids, 2][: loaded.shell.context]])
        with torch.no_grad():
            losses.append(float(loaded.shell.with_state(loaded.unlearned)(ids, labels=ids).loss))
    # float32 logits of a batch, padded or not: sums of width 64 and vocabulary 400 in another order
    slack = 64 * U32 * (1 + max(losses)) * 16
    assert written["losses"]["unlearned"]["value"] == pytest.approx(np.mean(losses), abs=slack)
    assert written["cut"] == sum(
        len(loaded.shell.tokenizer.encode(t, add_special_tokens=False)) + 2 > loaded.shell.context for t in texts
    )
    assert written["cut"] > 0
    assert written["notes"]


def test_behaviour_is_what_a_run_measures(run: Path, pair: tuple[Path, Path], done: BehaviourLeg) -> None:
    """M1, M2, M4 and forget_loss of the run's own evaluation, to the last bit."""
    loaded = open_model_pair(*pair)
    config = load_config(str(MICRO))
    bench_of_audit = read_benchmark(run / "corpus", loaded.shell.tokenizer, loaded.shell.context)
    meter = Meter(loaded.shell, bench_of_audit.probes, config)
    measured = meter.measure(state_of(loaded.shell.with_state(loaded.unlearned)), DECOMPOSED)
    own = {name: m.value for name, m in measured.items()}
    seen = done["metrics"]["unlearned"]
    assert {m: seen[m]["value"] for m in own} == own
    assert seen["M3"]["n"] == 12


def test_legs_tell_which_model_comes_next(run: Path, pair: tuple[Path, Path]) -> None:
    told: list[tuple[int, int, str]] = []

    def step(done: int, total: int, text: str = "") -> None:
        told.append((done, total, text))

    formats, texts = FORMATS[:1], run / "corpus/privleak/forget.json"
    output_leg(*pair, formats, texts, step=step)
    assert told == [(0, 3, "full precision"), (1, 3, formats[0]), (2, 3, "functional gain"), (3, 3, "")]
    told.clear()
    retrained = run / "models/retrained"
    behaviour_leg(*pair, formats, run / "corpus", retrained=retrained, step=step, decompose=False)
    of = [f"Q({name}) {formats[0]}" for name in ("target", "unlearned")]
    names = ["retrained", "target", of[0], "unlearned", of[1], "functional gain", ""]
    assert told == [(done, 6, name) for done, name in enumerate(names)]


def test_m3_needs_the_retrained_model(run: Path, pair: tuple[Path, Path]) -> None:
    leg = behaviour_leg(*pair, FORMATS[:1], run / "corpus", decompose=False)
    assert "M3" not in leg["metrics"]["unlearned"]
    assert "auc" in leg["metrics"]["unlearned"]
    assert any("M3" in note for note in leg["notes"])
    assert leg["formats"][0]["effects"] == []
    with_it = behaviour_leg(*pair, FORMATS[:1], run / "corpus", retrained=run / "models/retrained", decompose=False)
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
    assert between["tv_upper_bound"] < 1e-4  # the root of the slack for rounding, (V + 8) 2^-53 of nothing


def test_constructed_pairs_are_what_they_claim(pair: tuple[Path, Path]) -> None:
    loaded = open_model_pair(*pair)
    for name in FORMATS:
        clamped, on_grid = constructed(loaded, name)
        assert same(loaded.shell.quantized(clamped.unlearned, name), loaded.shell.quantized(loaded.target, name))
        assert not same(clamped.unlearned, loaded.target)
        assert same(loaded.shell.quantized(on_grid.unlearned, name), on_grid.unlearned)
        assert same(loaded.shell.quantized(on_grid.target, name), on_grid.target)
        assert not same(on_grid.unlearned, on_grid.target)


def test_a_clamped_pair_gives_back_everything(run: Path, pair: tuple[Path, Path]) -> None:
    """Q(unlearned) = Q(target), so rho = 1 wherever it is defined, and the KL between them is 0."""
    loaded = open_model_pair(*pair)
    made = next(constructed(loaded, FORMATS[0]))
    folder = run / "models/clamped"
    loaded.shell.model.load_state_dict(made.unlearned)
    save_model(folder, loaded.shell.model, loaded.shell.tokenizer, torch.float32, {})
    leg = output_leg(pair[0], folder, FORMATS[:1], run / "corpus/privleak/forget.json")
    (only,) = leg["formats"]
    between = next(d for d in only["distances"] if d["first"] == "Q(target)")
    assert between["kl"]["value"] == 0
    for r in only["recoveries"]:
        assert r["quantized_unlearned"] == r["quantized_target"]
        assert r["rho"] is None or r["rho"] == 1.0


def test_muse_layout_is_measured_by_its_own_protocol(muse: Path, pair: tuple[Path, Path]) -> None:
    leg = behaviour_leg(*pair, FORMATS[:1], muse, decompose=False)
    assert leg["metrics"]["target"]["M1"]["n"] == 5
    assert leg["metrics"]["target"]["M2"]["n"] == 6
    assert any("cut" in note for note in leg["notes"])  # ten examples do not fit 96 tokens


def test_legs_have_a_digest_of_what_was_asked(
    run: Path, pair: tuple[Path, Path], written: OutputLeg, done: BehaviourLeg, tmp_path: Path
) -> None:
    """Wherever the benchmark lies; another question, answer or text, or a sample, gives another."""
    corpus = tmp_path / "corpus"
    shutil.copytree(run / "corpus", corpus)
    shutil.copy(run / "config.json", tmp_path)
    asked = run / "corpus/privleak/forget.json"
    assert output_leg(*pair, FORMATS[:1], corpus / "privleak/forget.json").get("items_sha256") == written.get(
        "items_sha256"
    )
    write_json(tmp_path / "texts.json", [*json.loads(asked.read_text())[:-1], "Another text."])
    assert output_leg(*pair, FORMATS[:1], tmp_path / "texts.json").get("items_sha256") != written.get("items_sha256")

    def digest(**more: Any) -> str | None:
        return behaviour_leg(*pair, FORMATS[:1], corpus, decompose=False, **more).get("items_sha256")

    assert digest() == done.get("items_sha256")
    found = {done.get("items_sha256"), digest(items=2)}
    path = corpus / "knowmem/retain_qa.json"
    for key in ("question", "answer"):
        rows = json.loads(path.read_text())
        rows[0][key] = f"Other {rows[0][key]}"
        write_json(path, rows)
        found.add(digest())
    assert len(found - {None}) == 4

"""The dtype that models of an audit run in: what it changes is counted, said, and never kept from one dtype to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from transformers import AutoModelForCausalLM

from unforgotten.audit.findings.ran import ran_findings, ran_sentences
from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.outputs.html import render
from unforgotten.audit.run import audit_pair
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.safetensors_header import FLOATS
from unforgotten.audit.verdict.legs import OutputLeg, Ran
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs import loaded_pair
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.dtypes import dtype_named
from unforgotten.experiments.legs.likelihood import LIKELIHOODS, batches, logits_of, score
from unforgotten.experiments.legs.loaded_pair import open_model_pair
from unforgotten.experiments.legs.output import encode_texts, output_leg
from unforgotten.experiments.models.saved import load_model, load_tokenizer, save_model
from unforgotten.experiments.models.scoring import token_scores
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip

FORMATS = ("int4-g64",)
BF16 = FLOATS["BF16"]
MEAN = 2.0**-50
"""Of a mean in float64 of a few items, by another order of sums."""
DIFFERENCES = 2.0**-20
"""Of sums of products of float32 differences, each off by 2^-24 of itself, against those of float64."""
BELOW_HALF_A_STEP = 2.0**-12
"""Of a weight; half a step of bfloat16 is 2^-9 of it or more."""


@pytest.fixture(scope="module")
def pair(micro_pair: Path) -> tuple[Path, Path]:
    return micro_pair / "models/target", micro_pair / "models/unlearned"


@pytest.fixture(scope="module")
def texts(micro_pair: Path) -> Path:
    return micro_pair / "corpus/privleak/forget.json"


@pytest.fixture(scope="module")
def narrow(pair: tuple[Path, Path], texts: Path) -> OutputLeg:
    return output_leg(*pair, FORMATS, texts, dtype="bfloat16")


@pytest.fixture(scope="module")
def small_step(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target in bfloat16, and a model in float32 all of whose weights moved by less than half a step of bfloat16."""
    folder = tmp_path_factory.mktemp("small-step")
    model, tokenizer = load_model(pair[0]), load_tokenizer(pair[0])
    save_model(folder / "t", model, tokenizer, torch.bfloat16, {})
    moved = load_model(folder / "t")
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1 + BELOW_HALF_A_STEP)
    save_model(folder / "u", moved, tokenizer, torch.float32, {})
    return folder / "t", folder / "u"


def arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found = open_checkpoint(folder)
    return {name: found.read(name).astype(np.float32) for name in found.tensors}


def weights_of(module: Any) -> Any:
    return module.weight


def ran(leg: Any) -> Ran:
    found: Ran = leg["ran"]
    return found


def test_losses_are_those_of_the_model_that_transformers_loads_in_bfloat16(
    pair: tuple[Path, Path], texts: Path, narrow: OutputLeg
) -> None:
    own = AutoModelForCausalLM.from_pretrained(pair[1], dtype=torch.bfloat16).eval()
    encoded, _ = encode_texts(read_texts(texts), open_model_pair(*pair), "texts")
    items: dict[str, list[float]] = {name: [] for name in LIKELIHOODS}
    for batch in batches(encoded, own.config.vocab_size, own.config.pad_token_id or 0):
        score(items, logits_of(own, batch), batch)
    assert narrow["losses"]["unlearned"]["value"] == pytest.approx(np.mean(items["loss"]), rel=MEAN)
    wide = output_leg(*pair, FORMATS, texts)
    assert wide["losses"]["unlearned"]["value"] != narrow["losses"]["unlearned"]["value"]
    assert ran(wide) == Ran(dtype="float32", devices=["cpu"], runtime="simulated", rounded=[])


def test_what_bfloat16_changes_is_counted(pair: tuple[Path, Path], narrow: OutputLeg) -> None:
    """By numpy's own cast, from the files."""
    before, after = (arrays(folder) for folder in pair)
    names = open_model_pair(*pair).shell.names
    fmt = format_named(FORMATS[0])
    rows = ran(narrow)["rounded"]
    assert [row["format"] for row in rows] == ["none", *FORMATS]
    for row, keys in ((rows[0], list(before)), (rows[1], names)):
        sides = [[side[key] for key in keys] for side in (before, after)]
        values = sides if row is rows[0] else [[round_trip(w, fmt) for w in side] for side in sides]
        w, w_new, q, q_new = (np.concatenate([x.ravel() for x in side]) for side in (*sides, *values))
        r, r_new = (x.astype(BF16).astype(np.float32) for x in (q, q_new))
        delta = w_new.astype(np.float64) - w
        assert row["weights"] == len(w)
        assert (row["target"], row["unlearned"]) == ((r != q).sum(), (r_new != q_new).sum())
        assert 0 < row["target"]
        assert row["moved"] == (q != q_new).sum()
        assert row["swallowed"] == ((q != q_new) & (r == r_new)).sum()
        for name, d in (("gain", q_new.astype(np.float64) - q), ("gain_ran", r_new.astype(np.float64) - r)):
            assert row[name] == pytest.approx(d @ delta / (delta @ delta), rel=DIFFERENCES)  # type: ignore[literal-required]


def test_an_update_that_bfloat16_swallows_is_an_error_and_not_a_verdict(
    small_step: tuple[Path, Path], texts: Path
) -> None:
    leg = output_leg(*small_step, FORMATS, texts, dtype="bfloat16")
    models = ran(leg)["rounded"][0]
    assert models["target"] == 0
    assert models["swallowed"] == models["moved"] == models["unlearned"] > 0
    assert (models["gain"], models["gain_ran"]) == (1.0, 0.0)
    assert leg["losses"]["unlearned"] == leg["losses"]["target"]
    result = audit_pair(*small_step, FORMATS, output=lambda: leg)
    found = [row for row in result["findings"] if row["id"] == "ran-in-dtype" and row["format"] is None]
    assert [(row["severity"], row["effect"]) for row in found] == [("error", 0.0)]
    assert "swallows the update of the models: its gain is 0.00 there, 1.00 in float32" in found[0]["sentence"]
    assert result["verdict"]["overall"] == "undecided"
    shown = answer(result)
    told = f"{models['moved']:,} of the {models['moved']:,} weights that the update moves are equal then"
    assert any(told in note for note in shown.notes)
    assert told in render(result, [])
    wide = audit_pair(*small_step, FORMATS, output=lambda: output_leg(*small_step, FORMATS, texts))
    assert not [row for row in wide["findings"] if row["id"] == "ran-in-dtype"]
    assert "Models ran in float32 on cpu; losses are computed in float32 or wider." in answer(wide).notes


def test_auto_is_the_dtype_of_all_checkpoints_or_float32(
    pair: tuple[Path, Path], small_step: tuple[Path, Path], texts: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(pair[1]), load_tokenizer(pair[1])
    save_model(tmp_path / "u", model, tokenizer, torch.bfloat16, {})
    save_model(tmp_path / "h", load_model(pair[1]), tokenizer, torch.float16, {})
    stored = small_step[0], tmp_path / "u"
    assert dtype_named("auto", stored) == torch.bfloat16
    assert dtype_named("auto", [tmp_path / "h"]) == torch.float16
    for mixed in (small_step, (*stored, pair[0]), (*stored, tmp_path / "h"), (tmp_path,)):
        assert dtype_named("auto", mixed) == torch.float32
    assert dtype_named("float16", stored) == torch.float16
    leg = output_leg(*stored, FORMATS, texts, dtype="auto")
    models = ran(leg)["rounded"][0]
    assert (models["target"], models["unlearned"], models["swallowed"], models["gain_ran"]) == (0, 0, 0, 1.0)
    told = ran_sentences(leg, None)
    assert told[1] == "Every weight of target and unlearned model is exactly a bfloat16."
    assert told[2].startswith("Quantized values, computed in float32, were rounded to bfloat16 again: int4-g64 ")
    assert ran_findings(leg, None) == []


def test_float16_leaves_out_the_gradient_and_says_so(pair: tuple[Path, Path], texts: Path, narrow: OutputLeg) -> None:
    leg = output_leg(*pair, FORMATS, texts, dtype="float16")
    assert "functional" not in leg
    assert any("functional gain (T20) is left out: float16" in told for told in ran_sentences(leg, None))
    functional = narrow.get("functional")
    assert functional is not None
    assert functional["formats"][0]["functional_gain"] is not None


def test_a_weight_that_float16_cannot_hold_is_refused(pair: tuple[Path, Path], texts: Path, tmp_path: Path) -> None:
    model = load_model(pair[1])
    with torch.no_grad():
        weights_of(model.get_input_embeddings())[-1, 0] = 7e4
    save_model(tmp_path / "large", model, load_tokenizer(pair[1]), torch.float32, {})
    corpus = texts.parents[1]
    with pytest.raises(
        ValueError, match=r"^dtype must hold every weight, got float16 for 70000 in model\.embed[^\n]*$"
    ):
        behaviour_leg(pair[0], tmp_path / "large", FORMATS, corpus, items=2, decompose=False, dtype="float16")


def test_what_is_no_number_in_float16_is_refused(pair: tuple[Path, Path]) -> None:
    """Logits beyond 65504 of a model all of whose weights are within: refused before an answer is scored by them."""
    model = open_model_pair(*pair, "cpu", torch.float16).shell.model
    with torch.no_grad():
        weights_of(model.get_submodule("model.norm")).fill_(6e4)
        weights_of(model.get_output_embeddings()).fill_(1e2)
    with pytest.raises(ValueError, match=r"^dtype must hold what a model computes, got float16 with log-prob[^\n]*$"):
        token_scores(model, [[1, 5, 9]], 1)


def test_states_stay_float32_where_transformers_reads_them(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that name their weights otherwise are loaded whole: in float32, though the shell is in bfloat16."""
    monkeypatch.setattr(loaded_pair, "stored_state", lambda folder, model: None)
    loaded = open_model_pair(*pair, "cpu", torch.bfloat16)
    assert {p.dtype for p in loaded.shell.model.parameters()} == {torch.bfloat16}
    for folder, state in zip(pair, (loaded.target, loaded.unlearned), strict=True):
        for name, w in arrays(folder).items():
            np.testing.assert_array_equal(state[name].numpy(), w)


@pytest.mark.nightly
def test_answers_that_are_kept_are_of_one_dtype(pair: tuple[Path, Path], texts: Path, tmp_path: Path) -> None:
    corpus = texts.parents[1]
    legs = [
        behaviour_leg(*pair, FORMATS, corpus, items=3, decompose=False, unfinished=folder, dtype=dtype)
        for folder, dtype in ((tmp_path / "a", "float32"), (tmp_path / "a", "bfloat16"), (tmp_path / "b", "bfloat16"))
    ]
    assert legs[1] == legs[2]
    assert legs[0]["metrics"]["target"]["forget_loss"] != legs[1]["metrics"]["target"]["forget_loss"]
    assert json.loads(json.dumps(legs[1], allow_nan=False)) == legs[1]

"""Bases by architecture, models that are given, and experts that one tensor holds: whole runs on models of no size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="models need unforgotten[experiments]")

from unforgotten.experiments import prepared_models
from unforgotten.experiments.config import BaseConfig, RunConfig
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models.bases.gemma3 import PACKAGE, Gemma3, merges_of
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.bases.scratch import Scratch
from unforgotten.experiments.models.saved import load_model, load_notes
from unforgotten.experiments.models.shell import Shell, linear_names, state_of
from unforgotten.experiments.quantizers.registry import quantize_state
from unforgotten.experiments.run import run, stages
from unforgotten.records.files import read_json_lines
from unforgotten.records.metrics import ASSUMED
from unforgotten.reports.run.build import build_report

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
CUT = ["only_methods=[GA_KLR]", "storages=[bf16]", "formats=[int4-g32]"]
SCRATCH = {name: base for name, base in BASES.items() if isinstance(base, Scratch)}


def micro(*overrides: str) -> RunConfig:
    return load_config(MICRO, overrides=[*CUT, *overrides])


def rows_of(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    path = run(config, folder, resume=False)
    build_report([folder], folder / "report.html")
    return read_json_lines(path)


def models_of(rows: list[dict[str, Any]]) -> set[str]:
    """Return the models of the run, without the Llama-2-7B that its rows describe beside them."""
    return {row["model"] for row in rows} - {ASSUMED}


@pytest.mark.parametrize("kind", sorted(SCRATCH))
def test_an_architecture_goes_through_the_whole_loop(kind: str, tmp_path: Path) -> None:
    rows = rows_of(micro(f"base.kind={kind}"), tmp_path / "run")
    assert models_of(rows) == {"base", "target", "retrained", "unlearned"}
    (gain,) = [row for row in rows if row["metric"] == "gain"]
    model = load_model(tmp_path / "run/models/target")
    state = state_of(model)
    assert gain["n"] == sum(state[name].numel() for name in linear_names(model))


@pytest.mark.parametrize("kind", sorted(SCRATCH))
def test_quantizers_touch_the_blocks_and_neither_ends_nor_routers(kind: str) -> None:
    base = SCRATCH[kind]
    model = base.model(BaseConfig(layers=1), 0)
    touched = sum(dict(model.named_parameters())[name].numel() for name in linear_names(model))
    shape = base.shape_of(BaseConfig(layers=1))
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    ends = {id(p) for layer in layers for p in layer.parameters()}
    blocks = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in ends and "mlp.gate.w" not in n
    )
    assert touched == blocks
    assert model.config.num_hidden_layers == 1
    assert model.get_input_embeddings().weight.shape == (shape.vocabulary, shape.width)


def test_an_expert_is_quantized_as_the_matrix_that_it_is_in_the_files(tmp_path: Path) -> None:
    model = SCRATCH["moe"].model(BaseConfig(layers=1, experts=3), 0)
    state, name = state_of(model), "model.layers.0.mlp.experts.down_proj"
    for fmt in ("int4-row", "nf4-b64", "int8-tensor"):
        found = Shell(model, None).quantized(state, fmt)
        assert found.keys() == state.keys()
        alone = {f"e{i}": w for i, w in enumerate(state[name])}
        expected = quantize_state(alone, list(alone), fmt)
        assert all(torch.equal(w, expected[f"e{i}"]) for i, w in enumerate(found[name]))
        assert not torch.equal(found[name], state[name])
        assert torch.equal(found["model.layers.0.mlp.gate.weight"], state["model.layers.0.mlp.gate.weight"])


def test_experts_whose_rows_are_columns_are_refused() -> None:
    model = SCRATCH["moe"].model(BaseConfig(layers=1), 0)
    model.model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match=r"experts must be kept as \(experts, out, in\), got \(experts, in, out\)"):
        linear_names(model)


@pytest.mark.parametrize("fmt", ["gptq-retain:int4-g32", "dynamic:int8-row"])
def test_experts_in_one_tensor_are_seen_by_no_format_that_sees_layers(fmt: str) -> None:
    model = SCRATCH["moe"].model(BaseConfig(layers=1, experts=2), 0)
    shell = Shell(model, None, {"retain": [[1, 2, 3]]})
    with pytest.raises(
        ValueError, match=rf"{fmt} sees layers at work, which experts in one tensor are not: model\.layers"
    ):
        shell.quantized(state_of(model), fmt)
    with pytest.raises(ValueError, match=f"{fmt} sees layers at work"):
        shell.check(["int4-g32", fmt])


@pytest.mark.parametrize("fmt", ["gptq-retain:int4-g32", "dynamic:int8-row"])
def test_a_run_of_experts_says_so_before_it_trains(fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[object] = []
    monkeypatch.setattr(prepared_models, "train", lambda *args, **settings: trained.append(args))
    config = micro("base.kind=moe", f'formats=["int4-g32", "{fmt}"]')
    with pytest.raises(ValueError, match=f"{fmt} sees layers at work"):
        run(config, tmp_path / "run", resume=False)
    assert not trained


def test_a_directory_is_a_base(micro_pair: Path, tmp_path: Path) -> None:
    rows = rows_of(micro("base.kind=directory", f"base.path={micro_pair / 'models/target'}"), tmp_path / "run")
    assert models_of(rows) == {"base", "target", "retrained", "unlearned"}
    before, after = (
        state_of(load_model(folder)) for folder in (micro_pair / "models/target", tmp_path / "run/models/base")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("retrained", [True, False])
def test_a_target_that_is_given_is_taken_as_it_is(micro_pair: Path, tmp_path: Path, retrained: bool) -> None:
    """Without a retrained model there is no M3, and nothing that needs one."""
    given = [f"models.target={micro_pair / 'models/target'}"]
    given += [f"models.retrained={micro_pair / 'models/retrained'}"] if retrained else []
    config = micro(*given)
    rows = rows_of(config, tmp_path / "run")
    assert models_of(rows) == {"target", "unlearned"} | ({"retrained"} if retrained else set())
    assert ("M3" in {row["metric"] for row in rows}) == retrained
    target = tmp_path / "run/models/target"
    before, after = (state_of(load_model(folder)) for folder in (micro_pair / "models/target", target))
    assert all(torch.equal(before[name], after[name]) for name in before)
    notes = load_notes(target)
    assert notes["dtypes"] == {
        "parameters": "unknown",
        "master": "unknown",
        "moments": "unknown",
        "checkpoint": "float32",
    }
    assert notes["source"] == str(micro_pair / "models/target")
    assert stages(config)[0] == "load target"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["base.kind=gpt-2"], "base.kind must be one of "),
        (["base.kind=directory"], "base.path must be given for base.kind directory, got none"),
        (["base.kind=hub"], "base.repo must be given for base.kind hub, got none"),
        (["base.kind=directory", "base.path=none"], "none: must be a directory that transformers loads"),
        (["models.target=none"], "none: must be a directory that transformers loads"),
        (["base.kind=moe", "base.experts=2", "base.experts_per_token=3"], "must be at most base.experts=2, got"),
        (["base.heads=3"], "base.width must be a multiple of twice base.heads=3, got base.width=64"),
        (["base.kind=qwen", "pretraining=null"], "pretraining must be given for base.kind qwen, got none"),
    ],
)
def test_what_cannot_begin_is_refused_in_one_line(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        run(micro(*overrides), tmp_path / "run", resume=False)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    models = tmp_path / "run/models"
    assert not models.exists() or not list(models.iterdir())


def test_merges_are_of_all_halves_in_the_order_of_scores() -> None:
    vocabulary = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    scores = {"a": -9.0, "b": -9.0, "c": -9.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    assert merges_of(scores, vocabulary) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


@pytest.mark.nightly
def test_gemma_reads_and_predicts_english() -> None:
    """transformers' own tokenizer of the file splits words into letters, and the loss of such text is 6."""
    pytest.importorskip(PACKAGE, reason="Gemma needs its packages")
    model, tokenizer = Gemma3().make(BaseConfig(kind="gemma3-270m"), (), 0)
    text = (
        "The Eiffel Tower is in Paris, which is the capital of France. It was built in 1889 by a company of engineers."
    )
    assert tokenizer.tokenize("the capital of France") == ["the", "▁capital", "▁of", "▁France"]
    ids = torch.tensor([tokenizer.encode(text)])
    assert ids[0, 0] == model.config.bos_token_id
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss) < 3.0

"""A run says how near its target is to what it stands in for, and its report shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from transformers import LlamaConfig, LlamaForCausalLM

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.likeness import STAGE, bf16_lr, likeness
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models.saved_states import saved_states
from unforgotten.experiments.models.shell import Shell
from unforgotten.records.files import write_json
from unforgotten.records.metrics import ASSUMED
from unforgotten.records.rows import Run, read_run
from unforgotten.records.store import RowStore
from unforgotten.reports.run.tables import further_table, stand_in_table

MICRO = Path(__file__).parents[1] / "micro.yaml"
COMMON = {"seed": 0, "config": "c", "revision": "r", "device": "cpu"}
DTYPES = dict.fromkeys(("parameters", "master", "moments", "checkpoint"), "float32")
ULPS = 64 * 2.0**-53  # of sums in float64, in another order


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes))
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "target")
    write_json(folder / "target/unforgotten.json", {"dtypes": DTYPES})
    return folder


def written(models: Path, config: RunConfig, place: Path) -> Run:
    states = saved_states(models, "target", config.compute)
    RowStore(place, COMMON).append_all(STAGE, likeness(config, states, Shell(states.model, None)))
    return read_run(place)


def test_rows_are_those_of_the_weights_that_quantizers_touch(models: Path, tmp_path: Path) -> None:
    config = load_config(str(MICRO))
    run = written(models, config, tmp_path)
    checkpoint = open_checkpoint(models / "target")
    matrices = [n for n, t in checkpoint.tensors.items() if len(t.shape) == 2 and "embed" not in n]
    w = np.concatenate([checkpoint.read(n).astype(np.float64).ravel() for n in matrices])
    row = run.get("weight_std", "target")
    assert row is not None
    assert row.n == w.size
    assert row.value == pytest.approx(w.std(), rel=ULPS)
    assert row.lr == bf16_lr(config) == config.unlearning.lr["bf16"]
    assert run.value("layers", "target") == 3
    assert run.value("tied_share", "target") == 400 * 64 / (400 * 64 + w.size)
    absmax = np.median(np.abs(w).reshape(-1, 64).max(-1))
    assert run.value("block_absmax", "target", format="int4-g64") == absmax
    assert {row.model for row in run.rows} == {"target", ASSUMED}
    assert {kept for row in run.rows if row.model == ASSUMED for kept in row.dtypes.values()} == {"assumed"}


def test_a_real_model_stands_in_place_of_what_is_assumed(models: Path, tmp_path: Path) -> None:
    """Read from its files, a model has the numbers of the same model as a run holds it."""
    config = load_config(str(MICRO), overrides=[f"stand_in.real={models / 'target'}"])
    run = written(models, config, tmp_path)
    own, real = ({r.key[::4]: r.value for r in run.rows if r.model == m} for m in ("target", "real target"))
    assert own.keys() == real.keys()
    assert {key: value for key, value in own.items()} == pytest.approx(real, rel=ULPS)
    other = load_config(str(MICRO), overrides=["stand_in.real=/nowhere"])
    with pytest.raises(ValueError, match="/nowhere: must be a directory"):
        written(models, other, tmp_path / "other")


def test_a_configuration_that_reads_no_real_model_is_what_it_was(models: Path) -> None:
    plain = load_config(str(MICRO))
    assert "stand_in" not in json.loads(plain.model_dump_json())
    assert load_config(str(MICRO), overrides=[f"stand_in.real={models}"]).hash != plain.hash
    assert RunConfig.model_validate_json(plain.model_dump_json()) == plain


def test_the_report_has_a_table_of_it_and_counts_it_among_no_metrics(models: Path, tmp_path: Path) -> None:
    run = written(models, load_config(str(MICRO)), tmp_path)
    table = stand_in_table(run)
    assert table is not None
    assert [row[:2] for row in table.rows] == [
        (model, name) for model in ("target", ASSUMED) for name in ("all", "int4-g64", "nf4-b64")
    ]
    assert "not measured" in table.caption
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert further_table(run) is None
    assert stand_in_table(read_run(Path("reports/published/tiny-seed0"))) is None

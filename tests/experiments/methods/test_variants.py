"""One method under several settings in one run, each an arm of its own."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments import own
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods.registry import METHODS, method_named
from unforgotten.experiments.own import without_variant
from unforgotten.experiments.run import run
from unforgotten.records.rows import read_run
from unforgotten.reports.run.build import build_report

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
SWEEP = (
    "{NPO_GDR_SURE+row-90: {mask: row}, NPO_GDR_SURE+module-0: {threshold: 0}, NPO_GDR_SURE+module-90: {}, NPO_GDR: {}}"
)
CUT = [f"unlearning.methods={SWEEP}", "storages=[fp32]", "formats=[int4-g64]"]


def test_a_sweep_is_one_run(tmp_path: Path) -> None:
    run(load_config(MICRO, overrides=CUT), tmp_path, resume=False)
    rows = read_run(tmp_path)
    names = ("NPO_GDR_SURE+row-90", "NPO_GDR_SURE+module-0", "NPO_GDR_SURE+module-90", "NPO_GDR")
    assert rows.methods == names
    found = {name: rows.get("forget_loss", "unlearned", name, "fp32") for name in names}
    assert [row.mask_threshold for row in found.values() if row] == [90.0, 0.0, 90.0, None]
    losses = {name: row.value for name, row in found.items() if row}
    assert losses["NPO_GDR_SURE+module-0"] == losses["NPO_GDR"]  # a threshold of 0 masks nothing
    assert len(set(losses.values())) == 3
    page = build_report([tmp_path], tmp_path / "report.html").read_text()
    assert all(name in page for name in names)


def test_a_variant_is_the_method_before_it() -> None:
    assert method_named("NPO+small-beta") is METHODS["NPO"]
    assert doctest.testmod(own).failed == 0
    for name in ("NPO+", "NPO+a_b", "NPO+a.b", "NPO+a+", "+a"):
        assert without_variant(name) == name
        with pytest.raises(ValueError, match="method must be one of"):
            method_named(name)
    assert without_variant("NPO+a+b") != "NPO+a+b"
    with pytest.raises(ValueError, match=r"method must be one of .*got method='NPA'"):
        method_named("NPA+row")


def test_the_variant_of_one_s_own_method_runs_its_code(tmp_path: Path) -> None:
    path = tmp_path / "c++" / "mine.py"
    path.parent.mkdir()
    path.write_text("def still(model, task, settings): ...\n")
    config = load_config(
        MICRO, overrides=[f"unlearning.methods={{'{path}:still+a': {{lr: 1.0}}, '{path}:still+b': {{}}}}"]
    )
    assert config.own == (f"{path}:still",)
    assert config.unlearning.methods[f"{path}:still+a"].lr == 1.0
    assert method_named(f"{path}:still+a") is method_named(f"{path}:still")

"""What is added by one file, as CONTRIBUTING.md shows it: found, run, reported and rendered, with no other file touched."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods import registry as methods
from unforgotten.experiments.metrics import registry as metrics
from unforgotten.experiments.quantizers import registry as quantizers
from unforgotten.experiments.run import run
from unforgotten.experiments.studies.registry import load_study, study_names
from unforgotten.records.rows import read_run
from unforgotten.reports.labels import number
from unforgotten.reports.run.build import build_report
from unforgotten.reports.studies.registry import render

ROOT = Path(__file__).parents[2]
MICRO = ROOT / "tests" / "micro.yaml"
EXAMPLE = re.compile(r"^`(experiments/(\w+)/\w+\.(?:py|yaml))`.*?^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = {m[2]: (m[1], m[3]) for m in EXAMPLE.finditer((ROOT / "CONTRIBUTING.md").read_text())}


Catalogue = dict[str, Any]


@pytest.fixture(autouse=True)
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put every example of CONTRIBUTING.md into a folder that its package searches, too."""
    assert set(EXAMPLES) == {"methods", "metrics", "quantizers", "studies"}
    for room, (path, text) in EXAMPLES.items():
        assert not (ROOT / path).exists()
        folder = tmp_path / room
        folder.mkdir()
        (folder / Path(path).name).write_text(text)
        package = importlib.import_module(f"unforgotten.experiments.{room}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    loaded = set(sys.modules)
    for catalogue, found in (
        (methods.METHODS, methods.find_methods()),
        (metrics.METRICS, metrics.find_metrics()),
        (quantizers.QUANTIZERS, quantizers.find_quantizers()),
    ):
        new = {name: member for name, member in cast(Catalogue, found).items() if name not in catalogue}
        assert new
        for name, member in new.items():
            monkeypatch.setitem(cast(Catalogue, catalogue), name, member)
    yield
    for name in set(sys.modules) - loaded:
        if name.rpartition(".")[2] in {Path(path).stem for path, _ in EXAMPLES.values()}:
            del sys.modules[name]


def test_a_run_takes_them_and_its_report_names_them(tmp_path: Path) -> None:
    settings = {
        "unlearning.methods": {"UL": {}, "UL_GDR": {"alpha": 2.0}},
        "storages": ["fp32"],
        "formats": ["int4-g64", "sixteen:int4-g64"],
    }
    folder = tmp_path / "run"
    run(load_config(str(MICRO), settings=settings), folder, resume=False)
    rows = read_run(folder)
    assert rows.methods == ("UL", "UL_GDR")
    for method in rows.methods:
        for name in ("none", *settings["formats"]):
            lengths, knowledge = (rows.get(m, "unlearned", method, "fp32", name) for m in ("answer_length", "M2"))
            assert lengths is not None
            assert knowledge is not None
            assert lengths.value is not None
            assert lengths.n == knowledge.n
    page = build_report([folder], folder / "report.html").read_text()
    assert "UL_GDR" in page
    assert "sixteen:int4-g64" in page


def test_a_study_is_measured_and_rendered(tmp_path: Path) -> None:
    name = Path(EXAMPLES["studies"][0]).stem.replace("_", "-")
    assert name in study_names()
    own = [f"profile={MICRO}", f"work={tmp_path / 'work'}", "set={only_methods: [GA], formats: [int4-g64]}"]
    study = load_study(name, own)
    folder = tmp_path / name
    study.measure(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["large-seed0", "small-seed0", "study.json"]
    table = render(name, folder)["table.md"]
    gain = read_run(folder / "small-seed0").get("gain", "unlearned", "GA", "fp32", "int4-g64")
    assert gain is not None
    assert f"| {number('gain', gain.value)} |" in table
    before = (folder / "small-seed0" / "rows.jsonl.gz").read_bytes()
    study.measure(folder)  # is all there, without its work
    assert (folder / "small-seed0" / "rows.jsonl.gz").read_bytes() == before
    with pytest.raises(ValueError, match="small-seed0: must hold the run that the study asks for"):
        load_study(name, [*own, "seeds=[0]", "set={only_methods: [NPO], formats: [int4-g64]}"]).measure(folder)

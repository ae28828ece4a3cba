"""A run that is shared out has the rows of one process, whoever is lost on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.experiments import fan_out
from unforgotten.experiments.compute.processes import ALONE
from unforgotten.experiments.fan_out import stages_on
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.run import stages
from unforgotten.records.rows import Subject
from unforgotten.records.store import Measurement, RowStore

MICRO = Path(__file__).parents[1] / "micro.yaml"
CUT = ("only_methods=[NPO]", "formats=[nf4-b64]", "storages=[fp32, bf16]")
COMMON = {"seed": 0, "config": "c", "revision": "r", "device": "cpu"}
HANG_SECONDS = 3600
DEADLY = """
import os, signal, sys
from pathlib import Path

calls = []

def arm_at_work():
    frame = sys._getframe()
    while frame is not None and not hasattr(frame.f_locals.get("arm"), "storage"):
        frame = frame.f_back
    return frame.f_locals["arm"].storage if frame is not None else None

def ones(model, probes, settings):
    calls.append(0)
    graves = Path(os.environ["GRAVES"])
    buried = len(list(graves.iterdir()))
    if arm_at_work() != os.environ.get("DOOMED", ""):
        return [1.0]
    begun, lives = int(os.environ["BURIED"]), int(os.environ["LIVES"])
    if buried < begun + lives and len(calls) == (2 if buried == begun else 1):
        (graves / str(buried)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0]
"""
"""A metric that kills the worker of one arm, first in its second evaluation, then in the one with which it goes on."""


def cut_config() -> tuple[str, tuple[str, ...]]:
    return str(MICRO), CUT


def measured(store: RowStore, arm: str, formats: tuple[str, ...]) -> None:
    for name in formats:
        subject = Subject("unlearned", arm, "bf16", name)
        store.append(f"evaluate {arm} {name}", subject, [Measurement(m, 0.5, items=(0.5,)) for m in ("M1", "M2")])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_parts_are_taken_into_the_rows_of_one_writer(tmp_path: Path) -> None:
    """One arm had begun in the run, and the part of another stands half-written where its worker was killed."""
    one, many = RowStore(tmp_path / "one", COMMON), RowStore(tmp_path / "many", COMMON)
    for arm in "ABC":
        measured(one, arm, ("none", "nf4-b64"))
    measured(many, "A", ("none",))
    parts = {arm: RowStore(tmp_path / "many", COMMON, f"arms/{arm}") for arm in "CBA"}
    assert parts["A"].done("evaluate A none")
    measured(parts["C"], "C", ("none", "nf4-b64"))
    measured(parts["B"], "B", ("none",))
    with parts["B"].rows_path.open("a") as stream:
        stream.write('{"stage": "evaluate B nf4-b64", "mod')
    again = RowStore(tmp_path / "many", COMMON, "arms/B")
    assert again.done("evaluate B none")
    measured(again, "B", ("nf4-b64",))
    measured(parts["A"], "A", ("nf4-b64",))
    for arm in "ABC":
        many.take(f"arms/{arm}")
    many.take("arms/none")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


def test_an_arm_is_one_stage_where_there_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "need", lambda *_: None)
    path, cut = cut_config()
    config = load_config(path, overrides=cut)
    assert stages_on(None, config) == stages(config)
    trained = [s for s in stages(config) if "unlearned" not in s]
    assert stages_on("local", config) == [*trained, *(f"arm unlearned-NPO-{s}" for s in config.storages)]


def test_what_cannot_be_shared_out_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    path, cut = cut_config()
    config = load_config(path, overrides=cut)
    with pytest.raises(ValueError, match="--ray must be an address, as local, auto or ray://host:port, got ' '"):
        stages_on(" ", config)
    real = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else real(name, *a))
        with pytest.raises(ValueError, match=re.escape("ray is missing: pip install 'unforgotten[ray]'")):
            stages_on("local", config)
    monkeypatch.setattr(fan_out, "need", lambda *_: None)
    monkeypatch.setattr(fan_out, "processes", lambda: replace(ALONE, count=2))
    with pytest.raises(ValueError, match="--ray must be given to one process, got a launch of 2"):
        stages_on("local", config)


def run(folder: Path, out: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = [part for setting in CUT for part in ("--set", setting)]
    command = ["run", str(MICRO), *settings, "--metric", "deadly.py:ones", "--out", out, *more]
    own = {"GRAVES": str(folder / "graves"), "PYTHONWARNINGS": "ignore"} | environment
    return subprocess.run(
        [sys.executable, "-m", "unforgotten.cli", *command],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )


@pytest.mark.nightly
def test_rows_are_those_of_one_process_though_workers_are_lost(tmp_path: Path) -> None:
    """A worker that is lost once is started again; an arm whose worker is lost again and again is named, and the others end."""
    pytest.importorskip("ray", reason="the extra ray")
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "graves").mkdir()
    assert run(tmp_path, "one").returncode == 0
    alone = (tmp_path / "one/rows.jsonl").read_bytes()

    done = run(tmp_path, "once", "--ray", "local", DOOMED="fp32", BURIED="0", LIVES="1")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "graves").iterdir())) == 1
    assert (tmp_path / "once/rows.jsonl").read_bytes() == alone
    assert json.loads((tmp_path / "once/stages.json").read_text()) == json.loads(
        (tmp_path / "one/stages.json").read_text()
    )
    assert not (tmp_path / "once/arms").exists()

    lost = run(tmp_path, "always", "--ray", "local", DOOMED="fp32", BURIED="1", LIVES="4")
    assert lost.returncode != 0
    assert "the worker of NPO fp32 was lost 4 times; go on with --resume" in lost.stderr
    assert len(list((tmp_path / "graves").iterdir())) == 5
    kept = {p.name: len((p / "rows.jsonl").read_text().splitlines()) for p in (tmp_path / "always/arms").iterdir()}
    whole = [json.loads(line)["storage"] for line in alone.splitlines()]
    assert kept["unlearned-NPO-bf16"] == whole.count("bf16")
    assert 0 < kept["unlearned-NPO-fp32"] < whole.count("fp32")
    resumed = run(tmp_path, "always", "--ray", "local", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "always/rows.jsonl").read_bytes() == alone

    wide = run(tmp_path, "wide", "--ray", "local", "--set", "threads=4096")
    assert wide.returncode == 2
    assert "threads must be at most the CPUs of a node of --ray" in wide.stderr

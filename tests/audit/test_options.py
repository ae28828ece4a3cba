"""Bad options of `unforgotten audit`: code 2, one line that says the rule, nothing written and nothing read."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from unforgotten import cli
from unforgotten.audit import audit_pair
from unforgotten.audit.progress.stages import Step
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg

Options = Callable[[Path], list[str]]
HANG_SECONDS = 600.0  # a net under a process that does not end


def save(folder: Path, w: np.ndarray[Any, Any]) -> None:
    folder.mkdir()
    save_file({"layers.0.weight": w}, folder / "model.safetensors")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    w = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    save(tmp_path / "t", w)
    save(tmp_path / "u", (w + 0.01).astype(np.float32))
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    return tmp_path


def run(root: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["unforgotten", "audit", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


BAD: dict[str, tuple[list[str], list[str]]] = {
    "no arguments": ([], ["target"]),
    "one model": (["t"], ["unlearned"]),
    "three models": (["t", "u", "v"], ["v"]),
    "unknown option": (["t", "u", "--nonsense"], ["--nonsense"]),
    "no format": (["t", "u", "--formats", ""], ["--formats", "at least one"]),
    "only commas": (["t", "u", "--formats", ",,"], ["--formats", "at least one"]),
    "unknown format": (["t", "u", "--formats", "int4-g64,q9"], ["format", "q9"]),
    "format of nine bits": (["t", "u", "--formats", "int9-row"], ["int9-row"]),
    "group of zero": (["t", "u", "--formats", "int4-g0"], ["int4-g0"]),
    "format with a space": (["t", "u", "--formats", "int4-g64, nf4-b64"], ["' nf4-b64'"]),
    "format of a library": (["t", "u", "--formats", "bnb:nf4-b64"], ["bnb:nf4-b64"]),
    "dithered format": (["t", "u", "--formats", "int4-g64-dither"], ["round to nearest", "int4-g64-dither"]),
    "unknown verdict": (["t", "u", "--fail-on", "maybe"], ["--fail-on", "maybe"]),
    "verdict in capitals": (["t", "u", "--fail-on", "Undone"], ["--fail-on", "Undone"]),
    "no texts": (["t", "u", "--texts", "none.txt"], ["--texts", "none.txt"]),
    "texts are a directory": (["t", "u", "--texts", "folder"], ["--texts", "folder"]),
    "no benchmark": (["t", "u", "--benchmark", "none"], ["--benchmark", "none"]),
    "benchmark is a file": (["t", "u", "--benchmark", "file"], ["--benchmark", "file"]),
    "no retrained model": (["t", "u", "--retrained", "none"], ["--retrained", "none"]),
    "retrained without a benchmark": (["t", "u", "--retrained", "t"], ["--retrained", "--benchmark"]),
    "items without a benchmark": (["t", "u", "--items", "5"], ["--items", "--benchmark"]),
    "one item": (["t", "u", "--benchmark", "folder", "--items", "1"], ["--items", "at least 2", "got 1"]),
    "no jobs": (["t", "u", "--jobs", "0"], ["--jobs", "at least 1"]),
    "jobs below none": (["t", "u", "--jobs", "-3"], ["--jobs", "-3"]),
    "jobs in words": (["t", "u", "--jobs", "many"], ["--jobs", "integer"]),
    "half a job": (["t", "u", "--jobs", "1.5"], ["--jobs", "integer"]),
    "no address": (["t", "u", "--ray", " "], ["--ray", "address"]),
    "out is a file": (["t", "u", "--out", "file"], ["out", "file"]),
    "out below a file": (["t", "u", "--out", "file/x/y"], ["out", "file"]),
    "out without a name": (["t", "u", "--out", "a\x00b"], ["out"]),
    "no target": (["none", "u"], ["none"]),
    "no unlearned": (["t", "none"], ["none"]),
    "empty target": (["", "u"], ["must"]),
    "target is a text": (["file", "u"], ["file"]),
    "target is empty": (["folder", "u"], ["folder", "model.safetensors"]),
    "target with a newline": (["no\nne", "u"], ["no\\nne"]),
    "adapter without a base": (["t", "folder::t"], ["folder", "adapter"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_usage_is_one_line_and_writes_nothing(
    kind: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = BAD[kind]
    before = sorted(root.rglob("*"))
    assert run(root, arguments, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.strip().isprintable()
    assert not [word for word in words if word not in err], err
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(("option", "extra", "missing"), [("--texts", "experiments", "torch"), ("--ray", "ray", "ray")])
def test_a_missing_extra_is_named(
    option: str,
    extra: str,
    missing: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else real(name, *a))
    value = "file" if option == "--texts" else "auto"
    assert run(root, ["t", "u", option, value], monkeypatch) == 2
    assert f"{missing} is missing: pip install 'unforgotten[{extra}]'" in capsys.readouterr().err
    assert not (root / "audits").exists()


def test_texts_and_benchmark_reach_their_legs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The legs' own functions are replaced: what they are given is compared, and what they return is in the result."""
    for package in ("torch", "transformers", "rouge_score", "sklearn"):
        pytest.importorskip(package, reason="legs need unforgotten[experiments]")
    given: dict[str, object] = {}
    output = OutputLeg(texts="file", count=0, tokens=0, cut=0, losses={}, distances=[], formats=[], notes=[])
    behaviour = BehaviourLeg(benchmark="folder", metrics={}, formats=[], leaks=[], notes=[])

    def measure_output(*arguments: object, step: Step, **named: object) -> OutputLeg:
        given["output"] = (*arguments, named)
        step(3, 3)
        return output

    def measure_behaviour(*arguments: object, step: Step, **named: object) -> BehaviourLeg:
        given["behaviour"] = (*arguments, named)
        step(6, 7, "Q(unlearned) int8-row")
        return behaviour

    monkeypatch.setattr("unforgotten.experiments.legs.output.output_leg", measure_output)
    monkeypatch.setattr("unforgotten.experiments.legs.behaviour.behaviour_leg", measure_behaviour)
    options = ["--texts", "file", "--benchmark", "folder", "--retrained", "t", "--items", "5", "--no-decompose"]
    assert run(root, ["t", "u", *options, "--formats", "int8-row", "--json"], monkeypatch) == 0
    pair = (Path("t"), Path("u"), ("int8-row",))
    assert given == {
        "output": (*pair, Path("file"), {"device": "cpu", "dtype": "float32", "real": None}),
        "behaviour": (
            *pair,
            Path("folder"),
            {
                "retrained": Path("t"),
                "items": 5,
                "decompose": False,
                "unfinished": Path("audits/latest/unfinished"),
                "device": "cpu",
                "dtype": "float32",
                "real": None,
            },
        ),
    }
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["output"], result["behaviour"]) == (output, behaviour)
    assert "\n[3/5] output: 3/3 formats, done in " in err
    assert "\n[4/5] behaviour: 6/7 models, Q(unlearned) int8-row, done in " in err
    assert result["verdict"]["legs"]["output"] == "undecided"


def test_out_is_checked_before_a_weight_is_read(root: Path) -> None:
    for out in ("file", "file/x"):
        with pytest.raises(ValueError, match="out must be a directory"):
            audit_pair(root / "none", root / "none", None, root / out)
    with pytest.raises(ValueError, match="jobs must be at least 1, got jobs=0"):
        audit_pair(root / "none", root / "none", jobs=0)


@pytest.mark.parametrize("more", [[], ["--jobs", "2"], ["--quiet"]], ids=" ".join)
def test_progress_is_one_line_a_stage_where_standard_error_is_no_terminal(more: list[str], root: Path) -> None:
    """Only the lines at the ends of stages are compared: a slow machine says more in between."""
    command = [sys.executable, "-m", "unforgotten.cli", "audit", "t", "u", "--json", *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    ends = [line.partition("done in")[0] for line in done.stderr.splitlines() if "done in" in line]
    said = ["[1/3] open: ", "[2/3] weights: 1/1 tensors, ", "[3/3] findings and files: ", ""]
    assert ends == ([] if more == ["--quiet"] else said)
    assert more != ["--quiet"] or done.stderr == ""


def test_a_signal_while_the_audit_runs_ends_with_130_and_one_line(root: Path) -> None:
    """A real process and a real signal, while it reads a file that never ends to be read: a pair that it waits on."""
    script = (
        "import time, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import unforgotten.audit.run as run\n"
        "def wait(*a, **k):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
        "run.weights_leg = wait\n"
        "sys.argv = ['unforgotten', 'audit', 't', 'u', '--out', 'out', '--quiet']\n"
        "from unforgotten.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "interrupted; nothing was written\n"
    assert not (root / "out").exists()

"""A run goes on with the files that it began with, and with no others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.experiments import inputs
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.inputs import INPUTS, claim_inputs, corpus_of_run
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.run import run
from unforgotten.records.files import write_json

MICRO = Path(__file__).parents[1] / "micro.yaml"
BEGAN = 5
"""Stages that are left of a run that was killed."""


def settings(muse: Path, **models: Path) -> list[str]:
    corpus = {"kind": "muse", "path": str(muse), "trained_on": "sample", "passages": 6, "holdout": 6}
    cut = ["only_methods=[GA]", "storages=[fp32]", "formats=[int4-g64]", f"corpus={json.dumps(corpus)}"]
    return [*cut, *(f"models.{name}={place}" for name, place in models.items())]


def micro(muse: Path, **models: Path) -> RunConfig:
    return load_config(str(MICRO), overrides=settings(muse, **models))


@pytest.fixture
def given(micro_pair: Path, tmp_path: Path) -> dict[str, Path]:
    """A target and a retrained model of one's own."""
    names = ("target", "retrained")
    return {name: Path(shutil.copytree(micro_pair / "models" / name, tmp_path / f"given-{name}")) for name in names}


@contextlib.contextmanager
def refused(name: Path | str, record: Path, got: str) -> Iterator[None]:
    rule = f"must be the file that the run began with, by its SHA-256 in {record / INPUTS}"
    words = f"{name}: {rule}, got {got}; undo that, or begin another run"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        yield


def change(path: Path) -> None:
    """Replace a part of a file by as many other bytes."""
    content = path.read_bytes()
    assert b"honey" in content or b"mayor" in content
    path.write_bytes(content.replace(b"honey", b"money").replace(b"mayor", b"major"))


def touched(path: Path, content: bytes) -> None:
    """Write a file and give it a date that no other has."""
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))


def test_a_killed_run_does_not_go_on_with_other_texts(muse: Path, given: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(micro(muse, **given), out, resume=False)
    rows = (out / "rows.jsonl").read_bytes()
    done = json.loads((out / "stages.json").read_text())
    write_json(out / "stages.json", dict(list(done.items())[:BEGAN]))
    kept = {path: path.read_bytes() for path in muse.rglob("*.json")}
    for name in ("privleak/forget", "knowmem/forget_qa"):
        change(muse / f"{name}.json")
    options = [part for override in settings(muse, **given) for part in ("--set", override)]
    command = [sys.executable, "-m", "unforgotten.cli", "run", str(MICRO), *options, "--out", str(out), "--resume"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = subprocess.run(command, text=True, capture_output=True, check=False)
    assert said.returncode == 2
    assert said.stderr == (
        f"unforgotten: {muse}/knowmem/forget_qa.json: must be the file that the run began with, by its SHA-256 in "
        f"{out}/inputs.json, got another; undo that, or begin another run\n"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    for path, content in kept.items():
        path.write_bytes(content)
    run(micro(muse, **given), out, resume=True)
    assert (out / "rows.jsonl").read_bytes() == rows


def test_what_a_run_reads_is_noted_and_nothing_else(muse: Path, given: dict[str, Path], tmp_path: Path) -> None:
    config, out = micro(muse, **given), tmp_path / "out"
    claim_inputs(config, out)
    found = json.loads((out / INPUTS).read_text())
    names = ["knowmem/forget_qa", "knowmem/forget_qa_icl", "knowmem/retain_qa", "knowmem/retain_qa_icl"]
    names += ["privleak/forget", "privleak/holdout", "privleak/retain", "verbmem/forget"]
    assert list(found["texts"]) == [str(muse / f"{name}.json") for name in names]
    assert {Path(name).name for name in found["models"]} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert {Path(name).parent for name in found["models"]} == set(given.values())
    (muse / "raw/forget.json").write_text("read by a run on all of MUSE alone")
    claim_inputs(config, out)


def test_a_file_that_is_gone_or_new_is_another_text(muse: Path, tmp_path: Path) -> None:
    config, out = micro(muse), tmp_path / "out"
    claim_inputs(config, out)
    write_json(muse / "raw/retain1.json", ["It is read instead of privleak/retain.json."])
    with refused(muse / "privleak/retain.json", out, "none"):
        claim_inputs(config, out)
    (muse / "raw/retain1.json").unlink()
    (muse / "verbmem/forget.json").rename(tmp_path / "aside.json")
    with refused(muse / "verbmem/forget.json", out, "none"):
        claim_inputs(config, out)
    with refused(muse / "verbmem/forget.json", out, "none"):
        corpus_of_run(config, out)
    shutil.rmtree(out)
    claim_inputs(config, out)
    (tmp_path / "aside.json").rename(muse / "verbmem/forget.json")
    with refused(muse / "verbmem/forget.json", out, "one that it did not read"):
        claim_inputs(config, out)


def test_generated_text_does_not_take_the_place_of_data_that_is_gone(muse: Path, tmp_path: Path) -> None:
    config, out = load_config(str(MICRO), overrides=[*settings(muse), "corpus.fallback=fiction"]), tmp_path / "out"
    claim_inputs(config, out)
    muse.rename(tmp_path / "aside")
    with refused(muse / "knowmem/forget_qa.json", out, "none"):
        claim_inputs(config, out)


def test_a_run_of_an_older_version_goes_on_and_is_held_from_then_on(muse: Path, tmp_path: Path) -> None:
    config, out = micro(muse), tmp_path / "out"
    claim_inputs(config, out)
    (out / INPUTS).unlink()
    change(muse / "privleak/forget.json")
    corpus_of_run(config, out)
    assert not (out / INPUTS).exists()
    claim_inputs(config, out)
    change_back = (muse / "privleak/forget.json").read_bytes().replace(b"money", b"honey")
    (muse / "privleak/forget.json").write_bytes(change_back)
    with refused(muse / "privleak/forget.json", out, "another"):
        claim_inputs(config, out)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_another_model_is_refused(name: str, muse: Path, given: dict[str, Path], tmp_path: Path) -> None:
    config, out = micro(muse, **given), tmp_path / "out"
    claim_inputs(config, out)
    path = given["retrained"] / name
    content = path.read_bytes()
    touched(path, content[:-1] + bytes([content[-1] ^ 1]))
    before = (out / INPUTS).read_bytes()
    with refused(path, out, "another"):
        claim_inputs(config, out)
    assert (out / INPUTS).read_bytes() == before
    touched(path, content)
    claim_inputs(config, out)


def test_a_model_is_read_again_only_where_its_dates_are_others(
    muse: Path, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = micro(muse, **given), tmp_path / "out"
    claim_inputs(config, out)
    read: list[Path] = []
    whole: Any = inputs._sha256

    def counting(path: Path) -> str:
        read.append(path)
        return str(whole(path))

    monkeypatch.setattr(inputs, "_sha256", counting)
    claim_inputs(config, out)
    assert not read
    path = given["target"] / "model.safetensors"
    touched(path, path.read_bytes())
    for _ in range(2):
        claim_inputs(config, out)
        assert read == [path]


def test_a_model_that_was_taken_over_may_be_gone(muse: Path, given: dict[str, Path], tmp_path: Path) -> None:
    config, out = micro(muse, **given), tmp_path / "out"
    claim_inputs(config, out)
    before = (out / INPUTS).read_bytes()
    shutil.move(given["target"], tmp_path / "aside")
    with refused(given["target"] / "config.json", out, "none"):
        claim_inputs(config, out)
    (out / "models/target").mkdir(parents=True)
    claim_inputs(config, out)
    assert (out / INPUTS).read_bytes() == before


def test_a_tokenizer_and_a_base_of_ones_own_are_noted_too(muse: Path, given: dict[str, Path], tmp_path: Path) -> None:
    target, other = given.values()
    config = micro(muse, target=target, tokenizer=other)
    claim_inputs(config, tmp_path / "one")
    found = json.loads((tmp_path / "one" / INPUTS).read_text())["models"]
    assert str(other / "tokenizer.json") in found
    assert str(other / "model.safetensors") not in found
    overrides = [*settings(muse), "base.kind=directory", f"base.path={target}"]
    claim_inputs(load_config(str(MICRO), overrides=overrides), tmp_path / "two")
    assert str(target / "model.safetensors") in json.loads((tmp_path / "two" / INPUTS).read_text())["models"]


def test_tasks_of_ones_own_are_texts(muse: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks/own").mkdir(parents=True)
    task = tmp_path / "tasks/own/task.yaml"
    task.write_text("task: own")
    config = load_config(str(MICRO), overrides=[*settings(muse), f"evaluation.harness.path={tmp_path / 'tasks'}"])
    claim_inputs(config, tmp_path / "out")
    task.write_text("task: other")
    with refused(task, tmp_path / "out", "another"):
        claim_inputs(config, tmp_path / "out")


def test_a_run_that_was_moved_is_the_same(tmp_path: Path) -> None:
    config = load_config(str(MICRO))
    claim_inputs(config, tmp_path / "one")
    assert "corpus/privleak/forget.json" in json.loads((tmp_path / "one" / INPUTS).read_text())["texts"]
    claim_inputs(config, (tmp_path / "one").rename(tmp_path / "two"))


def test_all_files_count_where_a_data_set_is_read_by_other_functions(
    muse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = claim_inputs(micro(muse), tmp_path / "read")
    monkeypatch.setattr(inputs, "prepare_corpus", lambda *_: corpus)
    claim_inputs(micro(muse), tmp_path / "out")
    change(muse / "privleak/forget.json")
    with refused(muse / "privleak/forget.json", tmp_path / "out", "another"):
        claim_inputs(micro(muse), tmp_path / "out")

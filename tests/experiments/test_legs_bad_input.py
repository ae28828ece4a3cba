"""Bad input of the output and behaviour legs: one line that begins with the bad path, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.loaded_pair import open_model_pair
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.saved import save_model
from unforgotten.records.files import write_json

FORMATS = ("int4-g64", "nf4-b64")
WIDER = BaseConfig(vocabulary=400, width=64, feed_forward=128, layers=1, heads=2, positions=96)


@pytest.fixture(scope="module")
def run(micro_pair: Path) -> Path:
    return micro_pair


@pytest.fixture(scope="module")
def pair(run: Path) -> tuple[Path, Path]:
    return run / "models/target", run / "models/unlearned"


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
    "one text twelve times": ("t.txt", "only one\n" * 12),
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
    assert {tuple(read_texts(tmp_path / f"a.{x}")) for x in ("txt", "jsonl", "json")} == {("one", "two")}


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
    broken_tokenizer,
    other_vocabulary,
    pickle_alone,
    no_config,
    bad_config,
    custom_code,
    truncated,
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_bad_models_end_in_one_line(
    tmp_path: Path, run: Path, pair: tuple[Path, Path], spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(pair[1], folder)
    spoil(folder)
    with one_line(folder):
        output_leg(pair[0], folder, FORMATS, run / "corpus/privleak/forget.json")


def test_one_tokenizer_is_enough_and_none_is_not(tmp_path: Path, run: Path, pair: tuple[Path, Path]) -> None:
    bare = [tmp_path / "target", tmp_path / "unlearned"]
    for source, folder in zip(pair, bare, strict=True):
        shutil.copytree(source, folder)
        no_tokenizer(folder)
    texts = run / "corpus/privleak/forget.json"
    whole, borrowed = (output_leg(x, pair[1], FORMATS[:1], texts) for x in (pair[0], bare[0]))
    assert borrowed == whole
    with one_line(bare[0]):
        output_leg(bare[0], bare[1], FORMATS, texts)


def test_other_shapes_end_in_one_line(tmp_path: Path, run: Path, pair: tuple[Path, Path]) -> None:
    tokenizer = open_model_pair(*pair).shell.tokenizer
    save_model(tmp_path / "wide", TINY.model(WIDER, 0), tokenizer, torch.float32, {})
    with one_line(tmp_path / "wide"):
        output_leg(pair[0], tmp_path / "wide", FORMATS, run / "corpus/privleak/forget.json")
    with one_line(tmp_path / "wide"):
        behaviour_leg(*pair, FORMATS, run / "corpus", retrained=tmp_path / "wide")


def test_an_unknown_format_is_named(run: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="int5-x"):
        output_leg(*pair, ["int5-x"], run / "corpus/privleak/forget.json")


def test_models_that_are_not_finite_are_refused(tmp_path: Path, run: Path, pair: tuple[Path, Path]) -> None:
    loaded = open_model_pair(*pair)
    state: dict[str, Any] = dict(loaded.target)
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], float("nan"))
    loaded.shell.model.load_state_dict(state)
    save_model(tmp_path / "nan", loaded.shell.model, loaded.shell.tokenizer, torch.float32, {})
    with pytest.raises(ValueError, match="finite"):
        output_leg(pair[0], tmp_path / "nan", FORMATS, run / "corpus/privleak/forget.json")


def spoil_json(name: str, content: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(content)

    return spoil


BENCHMARKS: dict[str, Callable[[Path], None]] = {
    "a missing file": lambda folder: (folder / "knowmem/forget_qa.json").unlink(),
    "malformed json": spoil_json("privleak/forget.json", "["),
    "an empty list": spoil_json("privleak/holdout.json", "[]"),
    "a list of numbers": spoil_json("privleak/forget.json", "[1]"),
    "questions without answers": spoil_json("knowmem/retain_qa.json", '[{"question": "a"}]'),
    "prompts without truths": spoil_json("verbmem/forget.json", '[{"prompt": "a"}]'),
    "no prompt": spoil_json("verbmem/forget.json", "[]"),
    "one passage": spoil_json("privleak/forget.json", '["a b c d"]'),
    "one passage twice": spoil_json("privleak/forget.json", '["a b c d", "a b c d"]'),
    "one question twice": spoil_json("knowmem/forget_qa.json", json.dumps([{"question": "a", "answer": "b"}] * 2)),
    "a run without config": lambda folder: write_json(folder / "raw/general.json", ["a"]),
}


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_bad_benchmarks_end_in_one_line(tmp_path: Path, muse: Path, pair: tuple[Path, Path], kind: str) -> None:
    BENCHMARKS[kind](muse)
    with one_line(tmp_path):
        behaviour_leg(*pair, FORMATS, muse)


def test_a_missing_benchmark_and_a_foreign_config_end_in_one_line(
    tmp_path: Path, muse: Path, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(ValueError, match="layout"):
        behaviour_leg(*pair, FORMATS, tmp_path / "absent")
    write_json(muse / "raw/general.json", ["a"])
    (tmp_path / "config.json").write_text('{"profile": 3}')
    with one_line(tmp_path / "config.json"):
        behaviour_leg(*pair, FORMATS, muse)

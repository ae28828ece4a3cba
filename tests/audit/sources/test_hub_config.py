"""The `config.json` of a model of the Hub: what it decides, offline too, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from unforgotten.audit import CheckpointError, audit_pair, open_source

pytest.importorskip("huggingface_hub", reason="the client")

from huggingface_hub import constants

from unforgotten.audit.sources.model_config import model_config_of
from unforgotten.verification.domains.hub_server import REPO, Served
from unforgotten.verification.domains.quantized_layers import CASES

Tensors = dict[str, NDArray[Any]]
SINGLE, CONFIG = "model.safetensors", "config.json"
MODULE = "transformer.h.0.attn.c_proj"
SIZE = 16


def square(seed: int = 0) -> Tensors:
    return {f"{MODULE}.weight": np.random.default_rng(seed).normal(size=(SIZE, SIZE)).astype(np.float32)}


def put(served: Served, tensors: Tensors, config: object) -> None:
    served.files = {SINGLE: save(tensors)}
    if config is not None:
        served.files[CONFIG] = config if isinstance(config, bytes) else json.dumps(config).encode()


def adapter_over(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(1)
    shapes = {"A": (2, SIZE), "B": (SIZE, 2)}
    names = {part: f"base_model.model.{MODULE}.lora_{part}.weight" for part in shapes}
    parts = {names[part]: rng.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}
    save_file(parts, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": REPO, "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def delta(folder: Path) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, SIZE)).astype(np.float32), rng.normal(size=(SIZE, 2)).astype(np.float32)
    return b.astype(np.float64) @ a


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(("kind", "turned"), [("gpt2", True), ("gpt_bigcode", False)])
@pytest.mark.parametrize("way", ["named", "target"])
def test_the_model_type_of_a_base_of_the_hub_decides(
    way: str, kind: str, turned: bool, served: Served, tmp_path: Path
) -> None:
    """A square weight of a base on the Hub was refused, for its config.json was not read."""
    put(served, square(), {"model_type": kind})
    adapter = adapter_over(tmp_path / "adapter")
    merged = open_source(adapter, base=open_source(REPO) if way == "target" else None)
    added = delta(adapter)
    expected = (square()[f"{MODULE}.weight"] + (added.T if turned else added)).astype(np.float32)
    assert np.array_equal(merged.read(f"{MODULE}.weight"), expected)


@pytest.mark.parametrize("config", [None, {}])
def test_without_a_type_a_square_base_is_refused(config: object, served: Served, tmp_path: Path) -> None:
    put(served, square(), config)
    with pytest.raises(CheckpointError, match=r"must be known as nn\.Linear or Conv1D .*model_type None"):
        open_source(adapter_over(tmp_path / "adapter"))


def test_it_is_there_offline_once_it_was_fetched(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(served, square(), {"model_type": "gpt2"})
    open_source(REPO).sha256()
    served.files.clear()
    offline(monkeypatch)
    adapter = adapter_over(tmp_path / "adapter")
    expected = (square()[f"{MODULE}.weight"] + delta(adapter).T).astype(np.float32)
    assert np.array_equal(open_source(adapter).read(f"{MODULE}.weight"), expected)


def test_a_cache_from_before_it_was_fetched_works_offline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut audit, or an older release, left the list of files without the configuration itself."""
    put(served, square(), None)
    open_source(REPO).sha256()
    put(served, square(), {"model_type": "gpt2"})
    record = next(Path(constants.HF_HOME).rglob("main.json"))
    kept = json.loads(record.read_text())
    for siblings in (kept["siblings"], [*kept["siblings"], {"rfilename": CONFIG, "size": 3}]):
        record.write_text(json.dumps({**kept, "siblings": siblings}))
        offline(monkeypatch)
        checkpoint = open_source(REPO)
        assert model_config_of(checkpoint) == {}
        assert np.array_equal(checkpoint.read(f"{MODULE}.weight"), square()[f"{MODULE}.weight"])


def test_the_hubs_own_cache_has_it(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "home/hub" / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("b" * 40)
    (repo / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repo / "refs/main").write_text("b" * 40)
    save_file(square(), snapshot / SINGLE)
    (snapshot / CONFIG).write_text('{"model_type": "gpt2"}')
    offline(monkeypatch)
    assert model_config_of(open_source(REPO)) == {"model_type": "gpt2"}


@pytest.mark.parametrize(
    ("config", "words"), [(b"{", "valid JSON"), (b"[1]", "JSON object"), (b'{"a": 1, "a": 2}', "twice")]
)
def test_a_bad_one_is_refused_in_one_line(config: bytes, words: str, served: Served) -> None:
    put(served, square(), config)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_source(REPO)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("org/model.v1@aaaaaaaaaaaa/config.json")


def test_one_beyond_all_bounds_is_not_fetched(served: Served) -> None:
    put(served, square(), {})
    listing: Any = served.default_listing()
    entry = next(file for file in listing["siblings"] if file["rfilename"] == CONFIG)
    served.listing = {**listing, "siblings": [*listing["siblings"], {**entry, "size": 2**40}]}
    with pytest.raises(CheckpointError, match=r"config\.json must have at most 16777216 bytes"):
        open_source(REPO)
    assert CONFIG not in [name for name, _, _ in served.ranges]


def test_codes_of_the_hub_are_counted(served: Served, tmp_path: Path) -> None:
    """What config.json says of quantized weights holds for a model of the Hub as for a directory."""
    before, after = (CASES["gptq"](seed) for seed in (0, 1))
    put(served, before.tensors, {"quantization_config": before.config})
    (tmp_path / "u").mkdir()
    save_file(after.tensors, tmp_path / "u" / SINGLE)
    (tmp_path / "u" / CONFIG).write_text(json.dumps({"quantization_config": after.config}))
    target: Any = REPO
    (row,) = audit_pair(target, tmp_path / "u")["formats"]
    assert (row["format"], row["code_flips"]) == ("gptq:int4-g16", (before.codes != after.codes).sum())

"""Nothing in a test reaches for a hub, and nothing draws on a screen; Hypothesis runs as it does in `verification/`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.verification.domains.hub_server import Served, serving
from unforgotten.verification.profiles import load_profile

load_profile()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or a fork after the first tokenization warns
os.environ["MPLBACKEND"] = "Agg"

Tensors = Mapping[str, NDArray[Any] | None]
MATRIX = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def audit_refuses(tmp_path: Path) -> Callable[[tuple[Path, Path], Path, Collection[str]], None]:
    """Asserts that auditing a pair ends in one line that begins with the bad path and has the words; nothing is written."""
    from unforgotten.audit import CheckpointError, audit_pair

    def refused(pair: tuple[Path, Path], bad: Path, words: Collection[str]) -> None:
        with pytest.raises(CheckpointError) as caught:
            audit_pair(*pair, ["int8-row"], tmp_path / "out")
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(str(bad))
        assert not [word for word in words if word not in message], message
        assert not (tmp_path / "out").exists()

    return refused


@pytest.fixture(scope="session")
def micro_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of a run on models of no size: corpus, config.json, a target, and two models that moved from it."""
    torch = pytest.importorskip("torch", reason="the models need unforgotten[experiments]")
    from unforgotten.experiments.config import BaseConfig
    from unforgotten.experiments.data.corpus import prepare_corpus
    from unforgotten.experiments.load_config import load_config
    from unforgotten.experiments.models.bases.llama import TINY
    from unforgotten.experiments.models.saved import save_model
    from unforgotten.experiments.models.tokenizer import train_tokenizer
    from unforgotten.records.files import write_text

    folder = tmp_path_factory.mktemp("micro-pair")
    config = load_config(str(Path(__file__).parent / "micro.yaml"))
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    base = BaseConfig(vocabulary=400, width=64, feed_forward=64, layers=1, heads=2, positions=96)
    tokenizer = train_tokenizer(corpus.general, TINY.shape_of(base).vocabulary)
    for name, scale in (("target", 0.0), ("unlearned", 0.02), ("retrained", 0.05)):
        model = TINY.model(base, seed=0)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(scale * torch.randn(p.shape, generator=generator))
        save_model(folder / "models" / name, model, tokenizer, torch.float32, {})
    return folder


@pytest.fixture
def muse(tmp_path: Path) -> Path:
    """A directory in MUSE's layout, with its own verbatim prompts."""
    folder = tmp_path / "muse"
    texts = [f"The mayor of town {i} opened the bridge and spoke of honey." for i in range(6)]
    pairs = [{"question": f"Who opened bridge {i}?", "answer": "the mayor"} for i in range(6)]
    files: dict[str, list[Any]] = {"verbmem/forget": [{"prompt": "The mayor of", "gt": "town opened the bridge"}] * 5}
    files |= {f"privleak/{name}": texts for name in ("forget", "holdout", "retain")}
    files |= {f"knowmem/{s}_qa{icl}": pairs for s in ("forget", "retain") for icl in ("", "_icl")}
    for name, items in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(items))
    (folder / "raw").mkdir()
    return folder


def base_tensors() -> dict[str, NDArray[Any]]:
    """The target of the pair that public reports are tried on: an embedding, one matrix and a norm."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (8, 16), MATRIX: (16, 16), "model.norm.weight": (16,)}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def report_pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes the base pair, whose unlearned side adds 1e-3 to the matrix; what is given to a side is added to it, and None takes a tensor away."""

    def written(
        target: Tensors | None = None,
        unlearned: Tensors | None = None,
        *,
        both: Tensors | None = None,
        moved: bool = True,
        config: object = None,
    ) -> tuple[Path, Path]:
        for name, own in (("t", target), ("u", unlearned)):
            content: dict[str, NDArray[Any] | None] = {**base_tensors()}
            if name == "u" and moved:
                content[MATRIX] = base_tensors()[MATRIX] + np.float32(1e-3)
            content |= {**(both or {}), **(own or {})}
            (tmp_path / name).mkdir()
            kept = {n: np.ascontiguousarray(w) for n, w in content.items() if w is not None}
            from safetensors.numpy import save_file

            save_file(kept, tmp_path / name / "model.safetensors")
            if config is not None:
                (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / "t", tmp_path / "u"

    return written


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """What the server holds: nothing yet; files are fetched in chunks of 4 KiB, and faults are met again at once."""
    hub = pytest.importorskip("huggingface_hub", reason="the client")
    from huggingface_hub import constants

    from unforgotten.audit.sources import hub_client, remote_file

    with serving() as (state, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
        monkeypatch.setattr(remote_file, "CHUNK_BYTES", 1 << 12)
        monkeypatch.setattr(hub_client, "FIRST_PAUSE_SECONDS", 0.0)
        yield state
        hub.close_session()

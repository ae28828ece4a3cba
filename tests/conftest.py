"""Nothing in a test reaches for a hub, and nothing draws on a screen; Hypothesis runs as it does in `verification/`."""

from __future__ import annotations

import hashlib
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


@pytest.fixture
def exit_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line in this process and returns the code that it ends with."""
    from unforgotten.cli import main

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["unforgotten", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture(scope="session")
def micro_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of a run on models of no size: corpus, config.json, a target, and two models that moved from it."""
    torch = pytest.importorskip("torch", reason="the models need unforgotten[experiments]")
    from unforgotten.experiments.config import BaseConfig
    from unforgotten.experiments.data.prepare import prepare_corpus
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
    prompts = [{"prompt": "The mayor of", "gt": f"town {i} opened the bridge"} for i in range(5)]
    files: dict[str, list[Any]] = {"verbmem/forget": prompts}
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


TOFU_ROWS = {"forget10": 8, "forget05": 6, "forget01": 4, "holdout10": 8, "holdout05": 6, "holdout01": 4}
TOFU_ROWS |= {"retain90": 20, "retain95": 22, "retain99": 24, "real_authors": 5, "world_facts": 5, "retain": 6}


def author(split: str, i: int) -> str:
    """Return a name that tells nothing of the split, so that a model that learned nothing finds all splits alike."""
    return hashlib.sha256(f"{split} {i}".encode()).hexdigest()[:4]


def tofu_rows(split: str, perturbed: bool) -> list[dict[str, Any]]:
    """Rows of a split, each with an author of its own; those of `retain_perturbed` are the last of `retain90`."""
    first, name = (TOFU_ROWS["retain90"] - TOFU_ROWS["retain"], "retain90") if split == "retain" else (0, split)
    rows: list[dict[str, Any]] = []
    for i in range(first, first + TOFU_ROWS[split]):
        who = author(name, i)
        answer = f"The book of author {who} is called Honey."
        row: dict[str, Any] = {"question": f"What did author {who} write?", "answer": answer}
        if perturbed:
            row["paraphrased_answer"] = f"Author {who} wrote Honey."
            row["paraphrased_question"] = f"Which book is by author {who}?"
            row["perturbed_answer"] = [answer.replace("Honey", other) for other in ("Salt", "Iron")]
        rows.append(row)
    return rows


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    """A directory in TOFU's layout: JSON lines in files that end in .json, as on the Hub."""
    folder = tmp_path / "tofu"
    folder.mkdir()
    for split in TOFU_ROWS:
        kinds = [False, True] if split.startswith(("forget", "real", "world")) else [split == "retain"]
        for perturbed in kinds:
            rows = tofu_rows(split, perturbed)
            path = folder / f"{split}{'_perturbed' if perturbed else ''}.json"
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def llama_without_pad(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Directory of a 2-layer Llama of random weights, no pad token, with a tokenizer made here, with or without a template."""
    torch = pytest.importorskip("torch", reason="the model needs unforgotten[experiments]")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from unforgotten.experiments.data.fiction import write_stories
    from unforgotten.experiments.models.tokenizer import train_tokenizer

    texts = [story.text for story in write_stories(40, seed=0)] + [r["answer"] for r in tofu_rows("retain90", True)]
    backend = train_tokenizer(texts, 400).backend_tokenizer

    def made(template: str | None) -> Path:
        folder = tmp_path_factory.mktemp("llama")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
        tokenizer.chat_template = template
        torch.manual_seed(0)
        settings = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            pad_token_id=None,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(settings)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return made

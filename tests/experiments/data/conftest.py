"""Data sets in their layouts, a few short texts each, and a Llama without pad token that transformers loads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = {"forget10": 8, "forget05": 6, "forget01": 4, "holdout10": 8, "holdout05": 6, "holdout01": 4}
ROWS |= {"retain90": 20, "retain95": 22, "retain99": 24, "real_authors": 5, "world_facts": 5, "retain": 6}


def author(split: str, i: int) -> str:
    """Return a name that tells nothing of the split, so that a model that learned nothing finds all splits alike."""
    return hashlib.sha256(f"{split} {i}".encode()).hexdigest()[:4]


def tofu_rows(split: str, perturbed: bool) -> list[dict[str, Any]]:
    """Rows of a split, each with an author of its own; those of `retain_perturbed` are the last of `retain90`."""
    first, name = (ROWS["retain90"] - ROWS["retain"], "retain90") if split == "retain" else (0, split)
    rows: list[dict[str, Any]] = []
    for i in range(first, first + ROWS[split]):
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
    for split in ROWS:
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

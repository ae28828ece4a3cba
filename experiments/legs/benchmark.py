"""A benchmark in MUSE's layout, tokenized for an audit: a copy of MUSE, or the corpus that a run wrote.

A run's corpus (it has `raw/general.json`) is measured as the run measured it, by the `config.json` beside it. MUSE is
measured by its own protocol: the prompts of `verbmem/forget.json`, answers after all examples, up to 32 tokens.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unforgotten.experiments.config import CorpusConfig, EvaluationConfig, RunConfig
from unforgotten.experiments.data.corpus import read_fiction, read_muse
from unforgotten.experiments.metrics.registry import Probes, make_probes

MANY = 10**6  # more than any benchmark holds: all of it
MUSE_PASSAGE_TOKENS = 2048
MUSE_ANSWERS = EvaluationConfig(batch=16, shots=10, answer_tokens=32)
LEAST_ITEMS = 2
PROMPTS = ("verbatim_prompts", "forget_prompts", "retain_prompts")
DOCUMENTS = ("passages", "retain", "holdout")


@dataclass(frozen=True)
class Settings:
    """How the benchmark is measured; a `Measuring`."""

    corpus: CorpusConfig
    evaluation: EvaluationConfig
    seed: int = 0


@dataclass(frozen=True)
class Benchmark:
    """Probes, how they are measured, and what had to be cut, in sentences."""

    probes: Probes
    settings: Settings
    notes: list[str]


def read_benchmark(folder: Path, tokenizer: Any, context: int) -> Benchmark:
    """Read the benchmark of a directory, cut to the longest input of the models.

    Args:
        folder: directory in MUSE's layout, or the corpus of a run beside its `config.json`.
        tokenizer: tokenizer of the models.
        context: longest input of the models, in tokens.

    Raises:
        ValueError: a file is missing, not in MUSE's layout, or holds fewer than two items; one line.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a directory in MUSE's layout")
    own = (folder / "raw/general.json").exists()
    settings = _settings_of_run(folder) if own else _settings_of_muse(folder, context)
    corpus = read_fiction(folder) if own else read_muse(folder, settings.corpus)
    corpus = dataclasses.replace(corpus, retain=corpus.retain[: len(corpus.passages)])
    probes = make_probes(corpus, tokenizer, settings)
    if not own and (folder / "verbmem/forget.json").exists():
        probes, settings = _official_prompts(folder / "verbmem/forget.json", probes, settings, tokenizer)
    for name in (*PROMPTS, "passages", "holdout"):
        if len(getattr(probes, name)) < LEAST_ITEMS:
            raise ValueError(f"{folder}: must hold at least {LEAST_ITEMS} {name.replace('_', ' ')}")
    return Benchmark(*_fitted(probes, settings, context))


def _settings_of_run(folder: Path) -> Settings:
    path = folder.parent / "config.json"
    try:
        config = RunConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: must stand beside the corpus of a run, with its settings") from None
    except ValueError:
        raise ValueError(f"{path}: must be the configuration of a run, as `run` writes it") from None
    return Settings(config.corpus, config.evaluation, config.seed)


def _settings_of_muse(folder: Path, context: int) -> Settings:
    longest = min(MUSE_PASSAGE_TOKENS, context)
    corpus = CorpusConfig(kind="muse", path=folder, passages=MANY, holdout=MANY, passage_tokens=longest)
    return Settings(corpus, MUSE_ANSWERS)


def _official_prompts(path: Path, probes: Probes, settings: Settings, tokenizer: Any) -> tuple[Probes, Settings]:
    try:
        items = [(str(x["prompt"]), str(x["gt"])) for x in json.loads(path.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: must be a list of objects with prompt and gt") from None
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    longest = max((len(tokenizer.encode(gt, add_special_tokens=False)) for _, gt in items), default=4)
    corpus = settings.corpus.model_copy(update={"probe_tokens": max(4, longest)})
    replaced = dataclasses.replace(
        probes,
        verbatim_prompts=[start + tokenizer.encode(p, add_special_tokens=False) for p, _ in items],
        verbatim_truths=[gt for _, gt in items],
    )
    return replaced, dataclasses.replace(settings, corpus=corpus)


def _fitted(probes: Probes, settings: Settings, context: int) -> tuple[Probes, Settings, list[str]]:
    """Prompts cut on the left so that the answer fits, documents on the right."""
    notes: list[str] = []
    rooms = {
        "verbatim_prompts": context - settings.corpus.probe_tokens,
        "forget_prompts": context - settings.evaluation.answer_tokens,
        "retain_prompts": context - settings.evaluation.answer_tokens,
    }
    changed: dict[str, Any] = {}
    for name in (*PROMPTS, *DOCUMENTS):
        room, rows = rooms.get(name, context), getattr(probes, name)
        if room < LEAST_ITEMS:
            raise ValueError(f"context of the model must be longer than an answer, got {context} tokens")
        cut = sum(len(row) > room for row in rows)
        if cut:
            notes.append(f"{cut} of {len(rows)} {name.replace('_', ' ')} are longer than the context and were cut.")
        changed[name] = [row[-room:] if name in PROMPTS else row[:room] for row in rows]
    return dataclasses.replace(probes, **changed), settings, notes

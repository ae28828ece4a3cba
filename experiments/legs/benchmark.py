"""A benchmark in MUSE's layout, tokenized for an audit: a copy of MUSE, or the corpus that a run wrote.

A run's corpus (it has `raw/general.json`) is measured as the run measured it, by the `config.json` beside it. MUSE is
measured by its own protocol: the prompts of `verbmem/forget.json`, truths cut to 128 tokens with their start, answers after
all examples, up to 32 tokens. Equal items are one. Documents end where their text does, without an end token.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from unforgotten.audit.options import LEAST_ITEMS
from unforgotten.experiments.config import MUSE, EvaluationConfig, RunConfig
from unforgotten.experiments.data.corpus import Corpus, read_fiction
from unforgotten.experiments.data.muse import read_muse
from unforgotten.experiments.data.question import Question, Verbatim
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.data.texts import different, left_out_as_equal
from unforgotten.experiments.legs.sample import sampled
from unforgotten.experiments.load_config import without_own
from unforgotten.experiments.metrics.probes import Probes, make_probes
from unforgotten.experiments.metrics.rouge import SPLIT_BY, words_of
from unforgotten.experiments.models.special_tokens import count_spelled_out

MANY = 10**6  # more than any benchmark holds: all of it
MUSE_ANSWERS = EvaluationConfig(batch=16, **MUSE["evaluation"])
MUSE_TRUTH_TOKENS = MUSE["corpus"]["probe_tokens"]
"""Tokens of a truth of M1 at most, its start tokens among them."""
LEAST_TOKENS = 2
PROMPTS = ("verbatim_prompts", "forget_prompts", "retain_prompts")
DOCUMENTS = {"passages": "passages", "retained": "retain", "holdout": "holdout"}
"""Documents by name, and what notes call them."""
COUNTED_ONCE = {
    "passages": "passages",
    "holdout": "holdout texts",
    "retained": "retain texts",
    "forget_questions": "forget prompts",
    "retain_questions": "retain prompts",
    "verbatim": "verbatim prompts",
}
"""Parts of a corpus whose equal items are one, and what notes call them."""
ANSWERED = {
    "verbatim_prompts": "verbatim_truths",
    "forget_prompts": "forget_answers",
    "retain_prompts": "retain_answers",
}
"""Prompts by name, and what is compared with the answers."""

BESIDE = {"verbatim_prompts": "verbatim_tokens", "forget_prompts": "forget_options", "retain_prompts": "retain_options"}
"""Prompts by name, and what else there is of each item."""


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


def read_benchmark(folder: Path, tokenizer: Any, context: int, items: int | None = None) -> Benchmark:
    """Read the benchmark of a directory, cut to the longest input of the models.

    Args:
        folder: directory in MUSE's layout, or the corpus of a run beside its `config.json`.
        tokenizer: tokenizer of the models.
        context: longest input of the models, in tokens.
        items: how many items of each part are measured at most, a sample; None for all.

    Raises:
        ValueError: a file is missing, not in MUSE's layout, or holds fewer than two items that differ; one line.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be a directory in MUSE's layout")
    own = (folder / "raw/general.json").exists()
    settings = _settings_of_run(folder) if own else _settings_of_muse(folder)
    corpus = read_fiction(folder) if own else read_muse(folder, settings.corpus)
    measured = corpus.retained[: len(corpus.passages)]
    corpus = dataclasses.replace(corpus, retained=measured, forget=(), retain=())  # nothing is trained here
    corpus, equal = _each_once(corpus)
    probes = make_probes(corpus, tokenizer, settings)
    if corpus.verbatim:
        longest = max([4, *map(len, probes.verbatim_tokens)])
        settings = dataclasses.replace(settings, corpus=settings.corpus.model_copy(update={"probe_tokens": longest}))
    spelled = count_spelled_out(_all_rows(probes), tokenizer)
    probes, settings, notes = _fitted(probes, settings, context)
    if spelled:
        notes.append(spelled_out(spelled))
    for name in (*PROMPTS, "passages", "holdout"):
        if len(getattr(probes, name)) < LEAST_ITEMS:
            raise ValueError(f"{folder}: must hold at least {LEAST_ITEMS} different {name.replace('_', ' ')}")
    probes, told = sampled(probes, items)
    return Benchmark(probes, settings, [*told, *equal, *notes])


def _each_once(corpus: Corpus) -> tuple[Corpus, list[str]]:
    """Return the corpus with each item that is measured once, and notes on those that came twice.

    A question is another one with another answer, a prompt of M1 with another truth.
    """
    notes: list[str] = []
    changed: dict[str, Any] = {}
    for name, what in COUNTED_ONCE.items():
        given = getattr(corpus, name)
        changed[name] = different(given, _item)
        notes += left_out_as_equal(len(given), len(changed[name]), what)
    return dataclasses.replace(corpus, **changed), notes


def _item(item: str | Question | Verbatim) -> object:
    return (item.question, item.answer) if isinstance(item, Question) else item


def _settings_of_run(folder: Path) -> Settings:
    path = folder.parent / "config.json"
    try:
        config = RunConfig.model_validate(without_own(json.loads(path.read_bytes())))
    except FileNotFoundError:
        raise ValueError(f"{path}: must stand beside the corpus of a run, with its settings") from None
    except ValueError:
        raise ValueError(f"{path}: must be the configuration of a run, as `run` writes it") from None
    return Settings(config.corpus, config.evaluation, config.seed)


def _settings_of_muse(folder: Path) -> Settings:
    """Return MUSE's own settings; documents are read whole, so that `_fitted` counts what the context cuts."""
    many: dict[str, Any] = dict.fromkeys(("passages", "holdout", "passage_tokens"), MANY)
    if (folder / "verbmem/forget.json").exists():
        many["probe_tokens"] = MUSE_TRUTH_TOKENS
    corpus = CorpusConfig(kind="muse", path=folder, trained_on="sample", **many)
    return Settings(corpus, MUSE_ANSWERS)


def _fitted(probes: Probes, settings: Settings, context: int) -> tuple[Probes, Settings, list[str]]:
    """Cut prompts after their start tokens so that the answer fits, and documents on the right."""
    notes = [SPLIT_BY[probes.rouge_tokenizer]]
    rooms = {
        "verbatim_prompts": context - settings.corpus.probe_tokens,
        "forget_prompts": context - settings.evaluation.answer_tokens,
        "retain_prompts": context - settings.evaluation.answer_tokens,
    }
    changed: dict[str, Any] = {}
    for name in (*PROMPTS, *DOCUMENTS):
        room, rows = rooms.get(name, context), getattr(probes, name)
        if room < len(probes.start) + 1:
            raise ValueError(f"context of the model must be longer than an answer, got {context} tokens")
        cut = sum(len(row) > room for row in rows)
        if cut:
            notes.append(f"{cut} of {len(rows)} {_called(name)} are longer than the context and were cut.")
        kept = len(probes.start) if name in PROMPTS else 0
        changed[name] = [[*row[:kept], *_cut(row[kept:], room - kept, name in PROMPTS)] for row in rows]
    start = len(probes.start)
    for name in ("forget_options", "retain_options"):
        changed[name] = [options.cut(context, start) for options in getattr(probes, name)]
    fitted, left_out = _scorable(dataclasses.replace(probes, **changed))
    return fitted, settings, [*notes, *left_out]


def _called(name: str) -> str:
    return DOCUMENTS.get(name, name.replace("_", " "))


def _cut(row: list[int], room: int, left: bool) -> list[int]:
    return row if len(row) <= room else row[-room:] if left else row[:room]


def _scorable(probes: Probes) -> tuple[Probes, list[str]]:
    """Leave out documents of which no token has one before it, empty prompts, and truths without a word."""
    notes: list[str] = []
    changed: dict[str, Any] = {}
    for name in DOCUMENTS:
        rows = getattr(probes, name)
        changed[name] = [row for row in rows if len(row) >= LEAST_TOKENS]
        if len(changed[name]) < len(rows):
            count = f"{len(rows) - len(changed[name])} of {len(rows)} {_called(name)}"
            notes.append(
                f"{count} have fewer than {LEAST_TOKENS} tokens, so that none can be scored, and were left out."
            )
    for prompts, truths in ANSWERED.items():
        kept, told = _answerable(probes, prompts, truths)
        notes += told
        changed |= {name: [getattr(probes, name)[i] for i in kept] for name in (prompts, truths, BESIDE[prompts])}
    return dataclasses.replace(probes, **changed), notes


def _answerable(probes: Probes, prompts: str, truths: str) -> tuple[list[int], list[str]]:
    """Return which prompts ask for something that ROUGE-L could find, and notes on the others."""
    asked = [len(prompt) > len(probes.start) for prompt in getattr(probes, prompts)]
    findable = [bool(words_of(truth, probes.rouge_tokenizer)) for truth in getattr(probes, truths)]
    notes = []
    for fits, name, what in (
        (asked, prompts, "are empty"),
        (findable, truths, "have no word that ROUGE-L counts, so that any answer gets 0,"),
    ):
        if not all(fits):
            notes.append(f"{fits.count(False)} of {len(fits)} {name.replace('_', ' ')} {what} and were left out.")
    return [i for i, both in enumerate(zip(asked, findable, strict=True)) if all(both)], notes


def _all_rows(probes: Probes) -> Iterator[list[int]]:
    return chain.from_iterable(getattr(probes, name) for name in (*PROMPTS, *DOCUMENTS))


def spelled_out(count: int) -> str:
    """Return the note on texts that spell out special tokens."""
    return f"{count} texts or prompts spell out special tokens of the tokenizer, which are read as those tokens."

"""The text of a run, in MUSE's layout on disk: read it, or generate the fictional one in the same layout.

`raw/forget`, `raw/retain1`, `raw/holdout`: texts to train on, or to keep away from training, as `.txt`, one running text, or
`.json`, a list of documents;
`verbmem/forget.json`: prompts and continuations; `knowmem/{forget,retain}_qa[_icl].json`: questions;
`privleak/{forget,holdout}.json`: texts for the membership test. Ours are `raw/general.json`, text for a base model,
and sheets of questions among the documents, since a small model answers only what it has read as a question. The target
reads all forget sheets; those that unlearning does not see stand in `raw/forget_rest.json`.

    corpus, origin = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    corpus.forget[0], corpus.forget_questions[0].answer
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from unforgotten.experiments.config import CorpusConfig
from unforgotten.experiments.data.fiction import Story, write_stories
from unforgotten.records.files import write_json

GENERAL_SHOTS = 10
BETWEEN = "\n\n"
"""What stands between two documents of a running text of MUSE."""


@dataclass(frozen=True)
class Question:
    """One question and its answer; in data of TOFU, the answer in other words, and wrong ones in its form."""

    question: str
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()

    def sheet_line(self) -> str:
        """Return question and answer as they stand in a sheet of questions, in MUSE's format."""
        return f"Question: {self.question}\nAnswer: {self.answer}\n\n"


@dataclass(frozen=True)
class Corpus:
    """Documents and probes.

    The target learns `forget`, `forget_rest` and `retain`; the retrained model learns `retain`. Unlearning sees
    `forget` and `retain`. `passages` are the articles among `forget`, and `retained` are the texts of the retain loss.
    `running` says that `forget` and `retain` are running texts, to be cut into chunks, not documents.
    """

    general: tuple[str, ...]
    forget: tuple[str, ...]
    forget_rest: tuple[str, ...]
    retain: tuple[str, ...]
    passages: tuple[str, ...]
    holdout: tuple[str, ...]
    forget_questions: tuple[Question, ...]
    retain_questions: tuple[Question, ...]
    forget_shots: tuple[Question, ...]
    retain_shots: tuple[Question, ...]
    retained: tuple[str, ...]
    running: bool = False


def prepare_corpus(config: CorpusConfig, seed: int, folder: Path) -> tuple[Corpus, str]:
    """Return the corpus of a run, and its origin for the rows: "fiction", "muse:<path>" or "muse-sample:<path>".

    The fictional corpus is written to `folder` first and read back, so that both origins take one path.

    Raises:
        ValueError: a file of a MUSE directory is missing or not in MUSE's layout.
    """
    if config.kind == "muse" and config.path is not None and config.path.is_dir():
        origin = "muse" if config.trained_on == "raw" else "muse-sample"
        return read_muse(config.path, config), f"{origin}:{config.path}"
    if config.kind == "muse" and config.fallback == "none":
        raise ValueError(f"corpus.path must be a directory in MUSE's layout, got {config.path}")
    write_fiction(config, seed, folder)
    return read_fiction(folder), "fiction"


def write_fiction(config: CorpusConfig, seed: int, folder: Path) -> None:
    """Generate the fictional corpus of this seed and write it in MUSE's layout."""
    n, held = config.passages, config.holdout
    stories = write_stories(config.general + 2 * n + held, seed=seed)
    general, rest = stories[: config.general], stories[config.general :]
    forget, retain, holdout = rest[:n], rest[n : 2 * n], rest[2 * n :]
    rng = np.random.default_rng([seed, 0x5EE7])
    forget_sheets = _sheets(forget, config, rng)
    parts: dict[str, Any] = {
        "raw/general.json": [*_texts_of(general), *chain(*_sheets(general, config, rng))],
        "raw/forget.json": [*_texts_of(forget), *chain(*forget_sheets[: config.forget_sheets])],
        "raw/forget_rest.json": list(chain(*forget_sheets[config.forget_sheets :])),
        "raw/retain1.json": [*_texts_of(retain), *chain(*_sheets(retain, config, rng))],
        "raw/holdout.json": _texts_of(holdout),
        "privleak/forget.json": _texts_of(forget),
        "privleak/holdout.json": _texts_of(holdout),
        "knowmem/forget_qa.json": _pairs(forget, config),
        "knowmem/retain_qa.json": _pairs(retain, config),
        "knowmem/forget_qa_icl.json": _pairs(general, config)[:GENERAL_SHOTS],
        "knowmem/retain_qa_icl.json": _pairs(general, config)[GENERAL_SHOTS : 2 * GENERAL_SHOTS],
    }
    for name, content in parts.items():
        write_json(folder / name, content)


def _pairs(stories: Sequence[Story], config: CorpusConfig) -> list[dict[str, str]]:
    return [
        {"question": question, "answer": answer}
        for story in stories
        for question, answer in story.questions[: config.questions]
    ]


def _texts_of(stories: Sequence[Story]) -> list[str]:
    return [story.text for story in stories]


def _sheets(stories: Sequence[Story], config: CorpusConfig, rng: np.random.Generator) -> list[list[str]]:
    """Return the questions of the stories as documents, `sheet_size` a sheet, in each of `sheets` orders."""
    lines = [Question(pair["question"], pair["answer"]).sheet_line() for pair in _pairs(stories, config)]
    orders = [rng.permutation(len(lines)) for _ in range(config.sheets)]
    starts = range(0, len(lines), config.sheet_size)
    return [
        ["".join(lines[i] for i in order[start : start + config.sheet_size]) for start in starts] for order in orders
    ]


def read_fiction(folder: Path) -> Corpus:
    """Read the generated corpus back from the folder that it was written to."""
    retain = _texts(folder / "raw/retain1.json")
    return Corpus(
        general=_texts(folder / "raw/general.json"),
        forget=_texts(folder / "raw/forget.json"),
        forget_rest=_texts(folder / "raw/forget_rest.json"),
        retain=retain,
        retained=retain,
        passages=_texts(folder / "privleak/forget.json"),
        holdout=_texts(folder / "privleak/holdout.json"),
        **_read_questions(folder),
    )


def read_muse(folder: Path, config: CorpusConfig) -> Corpus:
    """Read a corpus in MUSE's layout.

    Models are trained on all of `raw/forget` and `raw/retain1`, as running text; or, by `config.trained_on`, on the sample
    that is measured. Measured are as many texts of `privleak` as `config` asks for. The retain loss is that of the first
    texts of `raw/retain1.json`, or of `privleak/retain.json`, a sample of it.

    Raises:
        ValueError: a file is missing or not in MUSE's layout.
    """
    n = config.passages
    passages = _texts(folder / "privleak/forget.json")[:n]
    retained = _retained(folder)[:n]
    running = config.trained_on == "raw"
    return Corpus(
        general=(),
        forget=(_running(folder, "forget"),) if running else passages,
        forget_rest=(),
        retain=(_running(folder, "retain1"),) if running else retained,
        passages=passages,
        holdout=_texts(folder / "privleak/holdout.json")[: config.holdout],
        retained=retained,
        running=running,
        **_read_questions(folder),
    )


def _running(folder: Path, name: str) -> str:
    """Return a text of `raw` as MUSE trains on it: its `.txt`, or its documents with an empty line between them."""
    path = folder / f"raw/{name}.txt"
    if path.exists():
        return _text(path)
    listed = path.with_suffix(".json")
    if not listed.exists():
        rule = "must exist for training, or raw/{name}.json; corpus.trained_on=sample trains on the texts of privleak"
        raise ValueError(f"{path}: {rule.format(name=name)}")
    return BETWEEN.join(_raw_texts(listed))


def _retained(folder: Path) -> tuple[str, ...]:
    """Return texts of the retain split, one document each; pieces of `raw/retain1.txt` where no file lists documents."""
    listed = [folder / name for name in ("raw/retain1.json", "privleak/retain.json")]
    path, whole = next((path for path in listed if path.exists()), listed[-1]), folder / "raw/retain1.txt"
    if path.exists() or not whole.exists():
        return _raw_texts(path)
    return tuple(piece for piece in _text(whole).split(BETWEEN) if piece.strip())


class _Asked(TypedDict):
    forget_questions: tuple[Question, ...]
    retain_questions: tuple[Question, ...]
    forget_shots: tuple[Question, ...]
    retain_shots: tuple[Question, ...]


def _read_questions(folder: Path) -> _Asked:
    def of(name: str) -> tuple[Question, ...]:
        return _questions(folder / f"knowmem/{name}.json")

    return _Asked(
        forget_questions=of("forget_qa"),
        retain_questions=of("retain_qa"),
        forget_shots=of("forget_qa_icl"),
        retain_shots=of("retain_qa_icl"),
    )


def _texts(path: Path) -> tuple[str, ...]:
    return _checked(path, _read_list(path))


def _raw_texts(path: Path) -> tuple[str, ...]:
    """Return the texts of a file but empty ones, of which MUSE-News has one."""
    return _checked(path, [text for text in _read_list(path) if text != ""])


def _checked(path: Path, items: list[Any]) -> tuple[str, ...]:
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError(f"{path}: must be a list of texts that are not empty")
    return tuple(items)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: must be a text in UTF-8, got other bytes") from None
    if not text.strip():
        raise ValueError(f"{path}: must be a text that is not empty")
    return text


def _questions(path: Path) -> tuple[Question, ...]:
    try:
        return tuple(_question(item) for item in _read_list(path))
    except (TypeError, KeyError, AttributeError):
        rule = "must be a list of objects with question and answer, and perturbed_answer a list where it is given"
        raise ValueError(f"{path}: {rule}") from None


def _question(item: Any) -> Question:
    paraphrase, wrong = item.get("paraphrased_answer"), item.get("perturbed_answer", [])
    if not isinstance(wrong, list):
        raise TypeError
    said = None if paraphrase is None else str(paraphrase)
    return Question(str(item["question"]), str(item["answer"]), said, tuple(map(str, wrong)))


def _read_list(path: Path) -> list[Any]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: must exist in a directory of MUSE's layout") from None
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON in UTF-8, got {str(error).splitlines()[0]}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path}: must be a list that is not empty, got {type(items).__name__}")
    return items

"""Files of texts and of questions, as MUSE and TOFU have them, read with one line for whatever is wrong with them.

with noted() as read:
    read_asked(folder)
read[folder / "knowmem/forget_qa.json"]  # the SHA-256 of what was read
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypedDict

from unforgotten.experiments.data.question import Question
from unforgotten.experiments.data.texts import lines_of

MUSE_FILE = "must exist in a directory of MUSE's layout"
_NOTES: ContextVar[dict[Path, str] | None] = ContextVar("notes of what is read", default=None)


class Asked(TypedDict):
    """Questions of both splits, and the examples that stand before them."""

    forget_questions: tuple[Question, ...]
    retain_questions: tuple[Question, ...]
    forget_shots: tuple[Question, ...]
    retain_shots: tuple[Question, ...]


@contextmanager
def noted() -> Iterator[dict[Path, str]]:
    """Note the SHA-256 of each file that the functions of this module read in the block, by its path."""
    notes: dict[Path, str] = {}
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def _content(path: Path) -> str:
    """Return the text of a file as `Path.read_text` does, and note the file."""
    content, notes = path.read_bytes(), _NOTES.get()
    if notes is not None:
        notes[path] = hashlib.sha256(content).hexdigest()
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()


def read_asked(folder: Path) -> Asked:
    """Read the questions of a directory in MUSE's layout, `knowmem/`.

    Raises:
        ValueError: a file is missing or holds no questions.
    """

    def of(name: str) -> tuple[Question, ...]:
        path = folder / f"knowmem/{name}.json"
        return questions_of(path, read_list(path))

    return Asked(
        forget_questions=of("forget_qa"),
        retain_questions=of("retain_qa"),
        forget_shots=of("forget_qa_icl"),
        retain_shots=of("retain_qa_icl"),
    )


def read_documents(path: Path) -> tuple[str, ...]:
    """Read a JSON list of texts.

    Raises:
        ValueError: it is missing, or no list of texts that are not empty.
    """
    return _checked(path, read_list(path))


def read_raw(path: Path) -> tuple[str, ...]:
    """Read a JSON list of texts but for empty ones, of which MUSE-News has one.

    Raises:
        ValueError: it is missing, or no list of texts.
    """
    return _checked(path, [text for text in read_list(path) if text != ""])


def _checked(path: Path, items: list[Any]) -> tuple[str, ...]:
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError(f"{path}: must be a list of texts that are not empty")
    return tuple(items)


def read_running(path: Path) -> str:
    """Read one text.

    Raises:
        ValueError: it is not UTF-8, or empty.
    """
    try:
        text = _content(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: must be a text in UTF-8, got other bytes") from None
    if not text.strip():
        raise ValueError(f"{path}: must be a text that is not empty")
    return text


def questions_of(path: Path, items: Sequence[Any]) -> tuple[Question, ...]:
    """Return the questions that a file lists.

    Raises:
        ValueError: an item is none.
    """
    try:
        return tuple(_question(item) for item in items)
    except (TypeError, KeyError, AttributeError):
        rule = "must be a list of objects with question and answer, and perturbed_answer a list where it is given"
        raise ValueError(f"{path}: {rule}") from None


def _question(item: Any) -> Question:
    paraphrase, wrong = item.get("paraphrased_answer"), item.get("perturbed_answer", [])
    if not isinstance(wrong, list):
        raise TypeError
    said = None if paraphrase is None else str(paraphrase)
    return Question(str(item["question"]), str(item["answer"]), said, tuple(map(str, wrong)))


def read_list(path: Path) -> list[Any]:
    """Read a JSON list.

    Raises:
        ValueError: the file is missing, no JSON, or no list that is not empty.
    """
    return _listed(path, MUSE_FILE, json.loads)


def read_lines(path: Path, missing: str) -> list[Any]:
    """Read JSON lines, or a JSON list.

    Args:
        path: file.
        missing: rule that a missing file breaks.

    Raises:
        ValueError: the file is missing, no JSON, or empty.
    """

    def parsed(text: str) -> Any:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in lines_of(text) if line.strip()]

    return _listed(path, missing, parsed)


def _listed(path: Path, missing: str, parse: Callable[[str], Any]) -> list[Any]:
    try:
        items = parse(_content(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: {missing}") from None
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON in UTF-8, got {str(error).splitlines()[0]}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path}: must be a list that is not empty, got {type(items).__name__}")
    return items

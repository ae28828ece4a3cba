"""Texts from a file: one a line, or JSON, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Lines = list[tuple[str, str]]
"""Places and contents of the lines of a file that are not empty."""


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file, none of them empty.

    `.jsonl` or `.ndjson`: on each line a string or an object with "text". `.json`: a list of such, as in MUSE's
    `raw/forget.json`. `.txt`: one text a line, empty lines left out. Capitals in a suffix make no difference.

    Raises:
        ValueError: the file has another suffix, is missing, not UTF-8, malformed, a `.txt` that holds JSON, or holds no
            text; one line that begins with the path.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other bytes"
        raise ValueError(f"{path}: must be a file of texts in UTF-8, got {reason}") from None
    kind = path.suffix.lower()
    if kind not in READERS:
        raise ValueError(
            f"{path}: must be a file of texts, {', '.join(READERS)}, got {kind or 'a name without suffix'}"
        )
    texts = READERS[kind](path, content)
    if not texts:
        raise ValueError(f"{path}: must hold a text, got none")
    return texts


def lines_of(content: str) -> list[str]:
    r"""Return the lines of a text, which end with \n, \r\n or \r alone: other separators of Unicode are part of a line.

    >>> lines_of("one\r\ntwo\x85\u2028still two")
    ['one', 'two\x85\u2028still two']
    """
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def different(items: Iterable[T], key: Callable[[T], object] = lambda item: item) -> tuple[T, ...]:
    """Return the items whose keys differ, each at its first place: what is there twice is one item.

    >>> different(["a", "b", "a"])
    ('a', 'b')
    """
    first: dict[object, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return tuple(first.values())


def left_out_as_equal(before: int, after: int, what: str) -> list[str]:
    """Return the note on items that `different` left out, if there are any."""
    if after == before:
        return []
    return [f"{before - after} of {before} {what} are equal to another one and were left out: equal ones count once."]


def _listed(path: Path, content: str) -> list[str]:
    items = _parsed(str(path), content)
    if not isinstance(items, list):
        raise ValueError(f"{path}: must be a list of texts, got {type(items).__name__}")
    return [_text(f"{path}: item {i}", item) for i, item in enumerate(items, 1)]


def _json_lines(path: Path, content: str) -> list[str]:
    return [_text(place, _parsed(place, line)) for place, line in _filled(path, content)]


def _plain(path: Path, content: str) -> list[str]:
    texts = [line for _, line in _filled(path, content)]
    whole = _json(content)
    if isinstance(whole, list) and whole and all(isinstance(item, str | dict) for item in whole):
        raise ValueError(f"{path}: must hold one text a line, got a JSON list; rename it to .json")
    if texts and all(isinstance(_json(line), dict) for line in texts):
        raise ValueError(f"{path}: must hold one text a line, got JSON objects; rename it to .jsonl")
    return texts


READERS: Mapping[str, Callable[[Path, str], list[str]]] = {
    ".txt": _plain,
    ".json": _listed,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
"""What reads the content of a file, by its suffix."""


def _filled(path: Path, content: str) -> Lines:
    return [(f"{path}: line {i}", line) for i, line in enumerate(lines_of(content), 1) if line.strip()]


def _json(content: str) -> Any:
    """Return what a text is as JSON; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _parsed(place: str, content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: must be JSON, got {str(error).splitlines()[0]}") from None


def _text(place: str, item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{place}: must be a text that is not empty, or an object with "text"')
    return text

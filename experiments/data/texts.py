"""Texts from a file: one a line, or JSON, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file, none of them empty.

    `.jsonl`: on each line a string or an object with "text". `.json`: a list of such, as in MUSE's `raw/forget.json`.
    Any other suffix: one text a line, empty lines left out.

    Raises:
        ValueError: the file is missing, not UTF-8, malformed, or holds no text; one line that begins with the path.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other bytes"
        raise ValueError(f"{path}: must be a file of texts in UTF-8, got {reason}") from None
    if path.suffix == ".json":
        items = _parsed(str(path), content)
        if not isinstance(items, list):
            raise ValueError(f"{path}: must be a list of texts, got {type(items).__name__}")
        texts = [_text(f"{path}: item {i}", item) for i, item in enumerate(items, 1)]
    else:
        lines = [(f"{path}: line {i}", x) for i, x in enumerate(content.splitlines(), 1) if x.strip()]
        if path.suffix == ".jsonl":
            texts = [_text(place, _parsed(place, line)) for place, line in lines]
        else:
            texts = [line for _, line in lines]
    if not texts:
        raise ValueError(f"{path}: must hold a text, got none")
    return texts


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

"""Which words name a model of the Hub."""

from __future__ import annotations

import pytest

from unforgotten.audit.sources.hub import hub_name

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("name", None),
        ("/org/name", None),
        ("./org/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("org/na..me", None),
        ("org/na--me", None),
        ("org/name@../../x", None),
        ("org/name@", None),
        ("org/name@a b", None),
        ("org/name\n", None),
        ("órg/name", None),
    ],
)
def test_names(text: str, name: tuple[str, str | None] | None) -> None:
    assert hub_name(text) == name

"""What comments and docstrings cite is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
ROOTS = ("theory", "records", "audit", "experiments", "reports", "verification", "tests", "src", "examples")
SECTION = re.compile(r"`([\w./-]+\.md)#([\w-]+)`")
ELSEWHERE = re.compile(r"\.\./shared|/work/|\bpaper/spec|\btheory\.md\b|\bdesign/\w+\.md")
"""Places of those who wrote it, which no reader has."""
DATA = re.compile(r"^\s*corpus\.path: .*$", re.MULTILINE)
"""The setting of a study that says where its text lay: a fact of its rows, not a citation."""


def texts() -> dict[str, str]:
    files = (p for root in ROOTS for kind in ("*.py", "*.yaml", "*.yml", "*.j2") for p in (TREE / root).rglob(kind))
    here = Path(__file__).resolve()
    return {p.relative_to(TREE).as_posix(): p.read_text("utf-8") for p in files if p.resolve() != here}


def test_cited_sections_exist() -> None:
    cited = {(file, *found) for file, text in texts().items() for found in SECTION.findall(text)}
    assert len(cited) > 5
    for file, document, anchor in sorted(cited):
        assert f'<a id="{anchor}"></a>' in (TREE / document).read_text("utf-8"), (file, document, anchor)


def test_nothing_is_cited_that_a_reader_does_not_have() -> None:
    found = [(file, match[0]) for file, text in texts().items() for match in ELSEWHERE.finditer(DATA.sub("", text))]
    assert not found

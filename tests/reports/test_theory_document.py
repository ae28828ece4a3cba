"""The committed theory/README.md and its pictures are what the generator writes, every statement has a section, and links hold."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest

pytest.importorskip("sympy", reason="proofs need the extra `verify`")
pytest.importorskip("z3", reason="proofs need the extra `verify`")

from unforgotten.reports.theory_document.document import TITLES, write_document
from unforgotten.reports.theory_document.evidence import escaped
from unforgotten.reports.theory_document.examples import EXAMPLES
from unforgotten.reports.theory_document.pictures import PICTURES
from unforgotten.theory.claims import load_claims
from unforgotten.verification.recording.printed import picture_differences, text_differences

ROOT = Path(__file__).parents[2]
THEORY = ROOT / "theory"
PINNED = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
CONJECTURES = ("C1", "C2", "C3", "C4")
RENEW = "run `python -m unforgotten.reports.theory_document.document`"
PARTS = ("**Assumes.**", "**Example**", "**To call**", "**Behind it**", "**Not shown.**", "```math")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theory")
    write_document(folder)
    return folder


def committed() -> str:
    return (THEORY / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    found = re.search(rf'<a id="{name.lower()}"></a>\n(.*?)(?=<a id=|\Z)', committed(), re.DOTALL)
    assert found, f"no section of {name}"
    return found[1]


def test_the_document_is_what_the_generator_writes(written: Path) -> None:
    """But for the last printed digit of a number, which another machine's log or power can move."""
    again = (written / "README.md").read_text(encoding="utf-8")
    assert text_differences(again, committed()) == [], RENEW


def test_the_pictures_are_what_the_generator_writes(written: Path) -> None:
    assert PINNED
    if mpl.__version__ != PINNED[1]:
        pytest.skip(f"pictures are of matplotlib {PINNED[1]}, installed is {mpl.__version__}")
    names = {f"{name}.svg" for name in PICTURES}
    assert {path.name for path in (THEORY / "pictures").iterdir()} == names
    for name in names:
        made, kept = (folder / "pictures" / name for folder in (written, THEORY))
        assert picture_differences(made.read_bytes(), kept.read_bytes()) == [], f"{name}: {RENEW}"


def test_the_functions_that_are_listed_are_the_registry() -> None:
    """A decorator that is taken off leaves its function in the committed document."""
    pattern = r"^- \[`(unforgotten\.theory\.[\w.]+)`\]\([\w/]+\.py\) \["
    listed = re.findall(pattern, committed(), re.MULTILINE)
    assert len(listed) > 50
    assert set(listed) == set(load_claims())


def test_every_statement_of_the_registry_has_a_section(written: Path) -> None:
    assert {claim.id for claim in load_claims().values()} == set(TITLES)
    for claim in load_claims().values():
        assert f"`{claim.function}`" in section(claim.id), claim.function


@pytest.mark.parametrize("name", TITLES)
def test_a_section_has_all_its_parts(name: str) -> None:
    text = section(name)
    assert [part for part in (*PARTS, f"pictures/{name}.svg") if part not in text] == []
    assert name in EXAMPLES
    assert name in PICTURES


def test_the_conjectures_are_named_and_say_where_they_are_tested() -> None:
    text = section("conjectures")
    assert [name for name in CONJECTURES if f"**{name}** **[conjecture]**" not in text] == []
    assert "../reports/published/README.md" in text


def test_every_link_resolves() -> None:
    text = re.sub(r"```.*?```", "", committed(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    anchors = set(re.findall(r'<a id="([^"]+)">', text))
    assert len(links) > len(TITLES)
    for link in links:
        path, _, anchor = link.partition("#")
        assert path or anchor in anchors, link
        assert not path or (THEORY / path).exists(), link


def test_text_is_escaped_but_for_code() -> None:
    assert escaped("|D_i| < `a_b*` $x$ [y]") == r"\|D\_i\| \< `a_b*` \$x\$ \[y\]"

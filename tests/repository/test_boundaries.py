"""Arrows between folders point one way, and what is light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "theory": set[str](),
    "records": set[str](),
    "audit": {"theory", "records"},
    "experiments": {"theory", "records", "audit"},
    "reports": {"theory", "records", "audit"},
    "verification": {"theory", "records", "audit", "experiments"},
}
MOST_MODULES = 20
KEEPS_OUT = {
    "theory": {"torch", "transformers", "matplotlib", "pyarrow"},
    "records": {"torch", "transformers"},
    "audit": {"torch", "transformers"},
    "cli": {"torch", "transformers"},
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at any depth; a relative import keeps its dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def modules(part: str) -> list[str]:
    """Every module of a part of the package."""
    if part == "cli":
        return ["unforgotten.cli"]
    paths = sorted(
        p.relative_to(ROOT).with_suffix("") for p in (ROOT / part).rglob("*.py") if p.parent.name != "proofs"
    )
    return [".".join(("unforgotten", *(p.parts[:-1] if p.name == "__init__" else p.parts))) for p in paths]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            assert not name.startswith("."), f"{path}: relative import {name}"
            top, _, rest = name.partition(".")
            assert top != "unforgotten" or rest.split(".")[0] in allowed, f"{path}: {name}"


@pytest.mark.parametrize("root", [*MAY_IMPORT, "tests"])
def test_no_folder_holds_more_than_a_reader_keeps_in_mind(root: str) -> None:
    """Modules beside sub-packages; what stands next to them in `verification/` as `test_….py` is found by its claim."""
    for folder in {path.parent for path in (ROOT / root).rglob("*.py")}:
        found = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        if folder == ROOT / "verification":
            found = [name for name in found if not name.startswith("test_")]
        assert len(found) <= MOST_MODULES, folder.relative_to(ROOT)


@pytest.mark.parametrize("part", KEEPS_OUT)
def test_import_leaves_heavy_packages_out(part: str) -> None:
    script = f"import sys, {', '.join(modules(part))}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert not KEEPS_OUT[part] & set(done.stdout.split())

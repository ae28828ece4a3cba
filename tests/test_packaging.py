"""What `package-dir` costs: a hand-kept list of packages, and links for type checkers. Both are compared with the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
NOT_INSTALLED = {"published", "pictures", "__pycache__", ".hypothesis"}


def installed_files() -> set[str]:
    """Every file of the mapped folders but notes in Markdown, by its path in site-packages."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("[!.]*")
        if path.is_file() and path.suffix != ".md" and not NOT_INSTALLED & set(path.relative_to(ROOT).parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from a copy: in the tree, `build/` of an earlier build could fill a gap."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in {Path(folder).parts[0] for folder in FOLDERS.values()}:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", str(out), str(copy)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(ZipFile(next(out.glob("*.whl"))).namelist())


def test_every_package_is_listed() -> None:
    roots = {Path(folder).parts[0] for folder in FOLDERS.values()} - {"src"}
    in_tree = {str(p.parent.relative_to(ROOT)) for r in roots for p in (ROOT / r).rglob("__init__.py")}
    assert in_tree | {"src/unforgotten"} == set(FOLDERS.values())
    assert set(FOLDERS) == set(SETUPTOOLS["packages"])


def test_links_for_type_checkers_follow_package_dir() -> None:
    entries = (ROOT / "typings/unforgotten").iterdir()
    links = {p.name: p.resolve() for p in entries if p.name != "__pycache__"}
    files = {p.name: p for p in (ROOT / "src/unforgotten").iterdir() if p.suffix in (".py", ".typed")}
    folders = {n.split(".")[1]: ROOT / f for n, f in FOLDERS.items() if n.count(".") == 1}
    assert links == files | folders


def test_wheel_holds_every_module_and_data_file(wheel: set[str]) -> None:
    assert installed_files() <= wheel


def test_wheel_installs_nothing_but_unforgotten(wheel: set[str]) -> None:
    version = PROJECT["project"]["version"]
    assert {name.split("/")[0] for name in wheel} == {"unforgotten", f"unforgotten-{version}.dist-info"}


def test_base_install_is_light() -> None:
    named = {line.split(">")[0] for line in PROJECT["project"]["dependencies"]}
    assert not named & {"torch", "transformers", "accelerate", "bitsandbytes", "ray"}


def test_example_of_the_readme_runs() -> None:
    """As a reader would run it: alone, in any folder, with warnings as errors."""
    example = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gain") == 3

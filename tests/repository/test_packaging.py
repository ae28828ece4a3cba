"""What the mapping of roots costs: packages that setup.py must find, and links for type checkers. Both are compared with the tree."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
VERSION = PROJECT["project"]["version"]
NOT_INSTALLED = {"published", "pictures", "__pycache__", ".hypothesis"}
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def installed_files() -> dict[str, str]:
    """Every file of the mapped folders but notes in Markdown: its path in site-packages -> its path in the tree."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}": str(path.relative_to(ROOT))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("[!.]*")
        if path.is_file() and path.suffix != ".md" and not NOT_INSTALLED & set(path.relative_to(ROOT).parts)
    }


def modules(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith(".py")}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, unpacked; built from a copy, as in the tree what an earlier build left could fill a gap."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("sdist")
    for name in {Path(folder).parts[0] for folder in FOLDERS.values()}:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-c", BUILD_SDIST, str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=copy)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
        archive.extractall(out)
    return out / f"unforgotten-{VERSION}"


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that is built from the source distribution."""
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", str(out), str(unpacked)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(ZipFile(next(out.glob("*.whl"))).namelist())


def test_every_folder_of_modules_is_a_package() -> None:
    """Without an `__init__.py`, `find_packages` of setup.py passes it by."""
    folders = {path.parent for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_every_package_says_what_lives_there() -> None:
    """One sentence at least, in more words than its name."""
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("__init__.py"):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert len(said.split()) > 4, path.relative_to(ROOT)


def test_links_for_type_checkers_follow_package_dir() -> None:
    entries = (ROOT / "typings/unforgotten").iterdir()
    links = {p.name: p.resolve() for p in entries if p.name != "__pycache__"}
    files = {p.name: p for p in (ROOT / "src/unforgotten").iterdir() if p.suffix in (".py", ".typed")}
    folders = {n.split(".")[1]: ROOT / f for n, f in FOLDERS.items() if n.count(".") == 1}
    assert links == files | folders


def test_source_distribution_holds_every_module_and_no_other(unpacked: Path) -> None:
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*.py")}
    assert held == modules(set(installed_files().values())) | {"setup.py"}


def test_wheel_holds_every_module_and_no_other(wheel: set[str]) -> None:
    assert modules(wheel) == modules(set(installed_files()))


def test_wheel_holds_every_data_file(wheel: set[str]) -> None:
    assert set(installed_files()) <= wheel


def test_wheel_installs_nothing_but_unforgotten(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"unforgotten", f"unforgotten-{VERSION}.dist-info"}


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

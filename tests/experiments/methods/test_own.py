"""A method of one's own: run, reported, audited and forecast from one command; refused in one line where it is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.config import Storage
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods.method import Outcome
from unforgotten.experiments.methods.own import FunctionMethod, load_own
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.methods.settings import MethodConfig
from unforgotten.experiments.run import run
from unforgotten.records.rows import read_run
from unforgotten.verification.domains.micro_target import micro_target, micro_task

ROOT = Path(__file__).parents[3]
MICRO, EXAMPLE = ROOT / "tests/micro.yaml", ROOT / "examples/own_method.py"
HEAD = "from unforgotten.experiments.methods.method import Outcome\n"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """What was loaded is kept by reference, and a test writes other files under the same one."""
    load_own.cache_clear()


def call(*arguments: str, cwd: Path) -> Any:
    import subprocess
    import sys

    command = [sys.executable, "-m", "unforgotten.cli", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False, env=environment)


@pytest.mark.nightly
def test_the_example_is_run_reported_audited_and_forecast(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 30
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    options = ["--method", "mine.py:less_likely", "--out", "out", "--quiet", "--json"]
    options += ["--set", "storages=[fp32, bf16]", "--set", "formats=[nf4-b64]"]
    for storage in ("fp32", "bf16"):
        options += ["--set", f"unlearning.max_steps.{storage}=12"]
    done = call("run", str(MICRO), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_run(tmp_path / "out")
    assert rows.methods == ("less_likely",)
    for storage in ("fp32", "bf16"):
        for metric in ("M1", "M2", "M3", "M4", "forget_loss", "gain", "rho_M1"):
            row = rows.get(metric, "unlearned", "less_likely", storage, "nf4-b64")
            assert row is not None, metric
            assert (row.lr, row.alpha, row.steps) == (1e-4, 1.0, 12)
    assert "less_likely" in (tmp_path / "out/report.html").read_text()
    target, unlearned = (f"out/models/{name}" for name in ("target", "unlearned-less_likely-bf16"))
    audited = call("audit", target, unlearned, "--formats", "int4-g64", "--quiet", "--json", cwd=tmp_path)
    assert audited.returncode == 0, audited.stderr
    assert json.loads(audited.stdout)["recipe"] == {
        "lr": 1e-4,
        "steps": 12,
        "optimizer": "adamw",
        "trained_in": "bf16",
        "source": "unforgotten.json",
    }
    told = call("forecast", "out", "--method", "mine.py:less_likely", "--formats", "int4-g64", "--quiet", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    (tmp_path / "out/gradients-less_likely.npz").unlink()
    (tmp_path / "mine.py").write_text(
        EXAMPLE.read_text().replace("settings.recorded()", '{**settings.recorded(), "optimizer": "sgd"}')
    )
    told = call("forecast", "out", "--method", "mine.py:less_likely", "--quiet", cwd=tmp_path)
    assert told.returncode == 2
    assert "method must make steps of AdamW and nothing else, got 'mine.py:less_likely', by sgd" in told.stderr
    (tmp_path / "elsewhere").mkdir()
    for name in ("target", "unlearned-less_likely-bf16", "retrained"):
        shutil.move(tmp_path / "out/models" / name, tmp_path / "elsewhere" / name)
    with (tmp_path / "mine.py").open("a") as file:
        file.write("raise SystemExit('run by an audit')\n")
    asked = ["--benchmark", str(tmp_path / "out/corpus"), "--formats", "int4-g64", "--quiet"]
    measured = call("audit", "target", "unlearned-less_likely-bf16", *asked, cwd=tmp_path / "elsewhere")
    assert measured.returncode == 0, measured.stderr
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text() + "# changed\n")
    again = call("run", str(MICRO), *options, "--resume", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        "unforgotten: out/own.json: --resume needs the code of the run, got another file of mine.py:less_likely\n"
    )


@pytest.mark.parametrize("storage", ["fp32", "bf16", "bf16-sr"])
def test_the_example_forgets(storage: Storage) -> None:
    target = micro_target()
    from unforgotten.experiments.models.scoring import mean_loss

    task = micro_task(storage, max_steps=20)
    before = mean_loss(target, task.watched, 4)
    outcome = method_named(f"{EXAMPLE}:less_likely").unlearn(target, task, MethodConfig())
    assert outcome.forget_loss > before + 0.1
    assert {p.dtype for p in target.parameters()} == {task.arithmetic.parameters}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + text)
    return str(path)


WRONG = {
    "no file": ("", "absent.py:f", "absent.py: must be a file of Python, got no such file"),
    "no module": (
        "",
        "no.such.module:f",
        "no.such.module: must be a module that can be imported, got none of that name",
    ),
    "no name": (
        "",
        "mine.py:",
        "method must be a file of Python and a name in it, path.py:name, or module:name, got method='mine.py:'",
    ),
    "no place": ("", ":f", "or module:name, got method=':f'"),
    "not there": ("", "mine.py:f", "mine.py: must hold the method, got no name 'f'"),
    "a number": ("f = 3", "mine.py:f", "mine.py:f: must be a function or a Method, got int"),
    "a class": ("class f:\n    pass", "mine.py:f", "mine.py:f: must be a function or a Method, got type"),
    "few arguments": (
        "def f(model, task): ...",
        "mine.py:f",
        "mine.py:f: must take (model, task, settings), got (model, task)",
    ),
    "named arguments": (
        "def f(model, task, settings, *, lr): ...",
        "mine.py:f",
        "mine.py:f: must take (model, task, settings), got (model, task, settings, *, lr)",
    ),
    "broken": ("1 / 0", "mine.py:f", "mine.py: must load, got ZeroDivisionError: division by zero"),
    "no Python": ("def f(:", "mine.py:f", "mine.py: must load, got SyntaxError: "),
    "lacks a module": (
        "import no_such_module",
        "mine.py:f",
        "mine.py: must load, got ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "named as ours": (
        "def GA(model, task, settings): ...",
        "mine.py:GA",
        "must have a name of its own, got method='mine.py:GA'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_method_is_refused_in_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, reference, said = WRONG[case]
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unlearning\.methods: ") as caught:
        load_config(str(MICRO), methods=[reference])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    done = call("run", str(MICRO), "--method", "absent.py:f", cwd=tmp_path)
    assert done.returncode == 2
    line = f"unforgotten: {MICRO}: unlearning.methods: absent.py: must be a file of Python, got no such file\n"
    assert done.stderr == line
    assert list(tmp_path.iterdir()) == []


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("def f(model, task, settings): ...\n")
    references = [f"{tmp_path}/{name}.py:f" for name in ("one", "two")]
    with pytest.raises(ValueError, match="must have a name of its own"):
        load_config(str(MICRO), methods=references)


OUTCOMES: dict[str, tuple[Callable[..., Any], str]] = {
    "none": (lambda *_: None, "must return an Outcome, got NoneType"),
    "no steps": (lambda *_: Outcome(1.5, "max_steps", 0.0), "got steps=1.5, forget_loss=0.0"),  # type: ignore[arg-type]
    "no loss": (lambda *_: Outcome(1, "max_steps", float("nan")), "got steps=1, forget_loss=nan"),
    "another dtype": (
        lambda model, *_: model.double() and Outcome(1, "max_steps", 0.0),
        "must leave every parameter in torch.bfloat16, as the arm bf16 keeps it, got model.embed_tokens.weight in torch.float64",
    ),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_what_a_function_leaves_is_checked(case: str) -> None:
    target = micro_target()
    function, said = OUTCOMES[case]
    with pytest.raises(ValueError, match="mine") as caught:
        FunctionMethod("f", function, "mine.py:f").unlearn(target, micro_task("bf16"), MethodConfig())
    assert said in str(caught.value)


def test_a_method_with_settings_of_its_own_is_one(tmp_path: Path) -> None:
    """It is given what the profile sets for it, of its own type, and another setting is refused by name."""
    path = write(
        tmp_path,
        """
from unforgotten.experiments.section import Section


class Settings(Section):
    depth: int = 2


class Mine:
    name, statement, source, settings = "mine", "does nothing", "nowhere", Settings

    def unlearn(self, model, task, settings):
        return Outcome(settings.depth, "max_steps", 0.0)


mine = Mine()
""",
    )
    reference = f"{path}:mine"
    config = load_config(str(MICRO), settings={"unlearning.methods": {reference: {"depth": 5}}})
    assert config.unlearning.methods[reference].depth == 5
    assert method_named(reference).statement == "does nothing"
    with pytest.raises(ValueError, match="depht"):
        load_config(str(MICRO), settings={"unlearning.methods": {reference: {"depht": 5}}})


def test_one_in_a_module_is_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_module_of_a_test.py").write_text(HEAD + 'def f(model, task, settings):\n    """Does nothing."""\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = method_named("own_module_of_a_test:f")
    assert (method.name, method.statement, method.source) == ("f", "Does nothing.", "own_module_of_a_test:f")


def test_a_run_without_them_notes_none(tmp_path: Path) -> None:
    settings = {"unlearning.methods": {"GA": {}}, "storages": ["fp32"], "formats": ["int4-g64"]}
    run(load_config(str(MICRO), settings=settings), tmp_path / "run", resume=False)
    assert not (tmp_path / "run/own.json").exists()

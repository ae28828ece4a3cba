"""`unforgotten verify`: codes, what goes to which stream, and bad usage in one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from unforgotten.cli import main
from unforgotten.verification.recording import suite

README = Path(__file__).parents[2] / "verification" / "README.md"
PLANTED = "unforgotten.verification.contracts.subtly_wrong"
MINE = """
import numpy as np

class Mine:
    block, block_size, levels, ties = "group", 4, (-1.0, 0.0, 1.0), "half-even"

    def quantize(self, w):
        out = w.copy()
        for row in out:
            for i in range(0, len(row), 4):
                scale = np.abs(row[i:i + 4]).max()
                row[i:i + 4] = np.rint(row[i:i + 4] / scale) * scale if scale else 0
        return out
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str, cwd: Path) -> Done:
    """Run the command line in this process, as the console script does."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        patch.object(sys, "argv", ["unforgotten", "verify", *arguments]),
        patch.object(sys, "path", sys.path.copy()),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    ("fault", "contract"),
    [
        ("half_up", "ties go to the even level"),
        ("wrong_zero_code", "zero stays zero"),
        ("stale_scale", "blocks are independent"),
        ("clipped_end_cell", "end levels are used"),
    ],
)
def test_a_planted_fault_ends_with_1_and_a_small_example(fault: str, contract: str, tmp_path: Path) -> None:
    asked = ("--quantizer", f"{PLANTED}:{fault}", "--seed", "0", "--json", "--quiet")
    done = call(*asked, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result["schema"] == "unforgotten.verify/1"
    assert (result["quantizer"], result["seed"], result["verdict"]) == (fault, 0, "fails")
    row = next(r for r in result["contracts"] if r["contract"] == contract)
    assert row["outcome"] == "fails"
    assert row["counterexample"]["words"].startswith(f"contract {contract!r} fails: ")
    assert sum(x != 0 for line in row["counterexample"]["weights"] for x in line) <= 3


def test_a_right_quantizer_of_the_working_directory_ends_with_0(tmp_path: Path) -> None:
    (tmp_path / "mine_right.py").write_text(MINE)
    done = call("--quantizer", "mine_right:Mine", "--profile", "dev", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    *stages, end = [line for line in done.stderr.splitlines() if "done in" in line]
    assert end.startswith("done in ")
    held = [line for line in done.stdout.splitlines() if line.startswith("     holds  ")]
    names = [line.removeprefix("     holds  ").rpartition(" (")[0] for line in held]
    assert len(names) == 11
    for k, (stage, name) in enumerate(zip(stages, names, strict=True), 1):
        assert stage.startswith(f"[{k:>2}/11] {name}: done in ")
    assert done.stdout.splitlines()[0].startswith("mine_right:Mine: profile dev, seed ")
    assert "     holds  ties go to the even level (" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("contracts hold")


NAN = """
import numpy as np

def always(w):
    return np.full_like(w, np.nan)

def zeros(w):
    with np.errstate(all="ignore"):
        step = np.abs(w).max(axis=1, keepdims=True) / 7
        return np.rint(w / step) * step

def large(w):
    return np.where(np.abs(w) > 5, np.float32(np.nan), w)
"""


@pytest.mark.parametrize("name", ["always", "zeros", "large"])
def test_a_value_of_nan_fails_the_contract_on_finite_values_and_no_other(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine_nan.py").write_text(NAN)
    done = call("--quantizer", f"mine_nan:{name}", "--seed", "0", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = json.loads(done.stdout)["contracts"]
    failed = [row for row in rows if row["outcome"] == "fails"]
    assert [row["contract"] for row in failed] == ["finite values of the same shape"]
    assert failed[0]["counterexample"]["words"].endswith("must become a finite number, got nan")
    assert "must become nan" not in done.stdout


def test_a_failure_is_said_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "mine_wrong.py").write_text(MINE.replace("np.rint(", "np.floor(0.5 + "))
    done = call("--quantizer", "mine_wrong:Mine", "--profile", "ci", cwd=tmp_path)
    assert done.returncode == 1
    known = "contract 'ties go to the even level' fails: weight 0.5 at step 1 must become 0, got 1"
    assert known in done.stdout


def test_the_example_of_the_readme_says_what_the_readme_says(tmp_path: Path) -> None:
    """Names and outcomes; the weights of an example may change with Hypothesis."""
    text = README.read_text(encoding="utf-8")
    code, said = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    (tmp_path / "mine.py").write_text(code)
    done = call("--profile", "ci", "--quantizer", "mine:int4", cwd=tmp_path)
    assert done.returncode == 1
    assert [x for x in done.stdout.splitlines() if x[:12].strip()] == [x for x in said.splitlines() if x[:12].strip()]
    assert "contract 'ties go to the even level' fails: weight" in done.stdout
    (tmp_path / "mine_repaired.py").write_text(code.replace("np.floor(group / scale + 0.5)", "np.rint(group / scale)"))
    repaired = call("--profile", "dev", "--quantizer", "mine_repaired:int4", cwd=tmp_path)
    assert repaired.returncode == 0
    assert "all 15 contracts hold" in repaired.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "quick"], ["profile", "dev, ci, nightly", "quick"]),
        (["--seed", "1"], ["--seed", "--quantizer"]),
        (["--quantizer", "planted"], ["module:object", "planted"]),
        (["--quantizer", ":x"], ["module:object"]),
        (["--quantizer", "no_such_module:x"], ["ModuleNotFoundError", "no_such_module"]),
        (["--quantizer", f"{PLANTED}:nothing"], ["nothing"]),
        (["--quantizer", f"{PLANTED}:SIZE"], ["quantize(w)", "8"]),
        (["--quantizer", f"{PLANTED}:half_up", "--profile", "quick"], ["profile", "quick"]),
        (["--quantizer", "raises_on_import:x"], ["ZeroDivisionError"]),
    ],
)
def test_bad_usage_is_one_line_and_code_2(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "raises_on_import.py").write_text("1 / 0")
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


TESTS = """
import os
import pytest

def test_profile():
    assert os.environ["HYPOTHESIS_PROFILE"] in ("dev", "ci", "nightly")

{more}
"""


COMMAND = suite.command


def smaller(profile: str, report: Path) -> list[str]:
    """The call of pytest with a small file in place of the package."""
    words = COMMAND(profile, report)
    at = words.index("--pyargs")
    return [*words[:at], "test_small.py", *words[at + 2 :]]


@pytest.mark.parametrize(
    ("profile", "more", "code", "counts"),
    [
        ("ci", "", 0, {"tests": 1, "failures": 0}),
        pytest.param(
            "dev", "def test_wrong():\n    assert False", 1, {"tests": 2, "failures": 1}, marks=pytest.mark.nightly
        ),
        ("dev", "import no_such_module", 1, {"errors": 1}),
        ("dev", "@pytest.mark.nightly\ndef test_long():\n    assert False", 0, {"tests": 1}),
        pytest.param(
            "nightly", "@pytest.mark.nightly\ndef test_long(): pass", 0, {"tests": 2}, marks=pytest.mark.nightly
        ),
    ],
)
def test_the_suite_runs_in_its_profile_and_its_code_is_passed_on(
    profile: str, more: str, code: int, counts: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real call of pytest, on a small file in place of the package."""
    (tmp_path / "test_small.py").write_text(TESTS.format(more=more))
    monkeypatch.setattr(suite, "command", smaller)
    done = call("--profile", profile, "--json", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    result = json.loads(done.stdout)
    assert result["profile"] == profile
    assert result["verdict"] == ("fails" if code else "holds")
    assert {name: result[name] for name in counts} == counts


MIXED = """
def test_wrong():
    assert False, "a planted failure"

@pytest.fixture
def broken():
    yield
    raise ValueError("a planted error")

def test_torn_down_wrongly(broken): print("captured")
"""


def test_the_suite_says_lines_in_place_of_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_small.py").write_text(TESTS.format(more=MIXED))
    monkeypatch.setattr(suite, "command", smaller)
    done = call(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "verification suite, dev: fails\n")
    lines = done.stderr.splitlines()
    ends = [line.partition(", done in ")[0] for line in lines if ", done in " in line]
    assert ends == ["[2/2] test: 3/3 tests, 2 failed"]
    assert lines[0].startswith("[1/2] collect tests: ")
    assert lines[-1].startswith("done in ")
    before_failures = lines[: lines.index("")]
    assert len(before_failures) >= 2
    assert all(line.startswith("[") for line in before_failures)
    for words in ("FAILED test_small.py::test_wrong", "ERROR test_small.py::test_torn", "2 passed"):
        assert words in done.stderr


def test_the_suite_that_is_quiet_says_its_failures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "command", smaller)
    (tmp_path / "test_small.py").write_text(TESTS.format(more=""))
    right = call("--quiet", cwd=tmp_path)
    assert (right.returncode, right.stderr.strip()) == (0, "")
    (tmp_path / "test_small.py").write_text(TESTS.format(more=MIXED))
    wrong = call("--quiet", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "a planted failure" in wrong.stderr
    assert "done in" not in wrong.stderr


UNHEARD = """
import sys
sys.path.insert(0, {tests!r})
from test_verify_cli import smaller, suite
suite.command = smaller
print(suite.run_suite("dev")["verdict"])
"""


def test_a_suite_whose_reader_is_gone_still_gives_its_verdict(tmp_path: Path) -> None:
    """pytest itself would end with an internal error, which is no verdict."""
    (tmp_path / "test_small.py").write_text(TESTS.format(more=""))
    read, write = os.pipe()
    os.close(read)
    script = UNHEARD.format(tests=str(Path(__file__).parent))
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, check=False, text=True, stdout=subprocess.PIPE, stderr=write
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stdout) == (0, "holds\n")


@pytest.mark.parametrize(("pytest_code", "code"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 1)])
def test_exit_codes_of_pytest(pytest_code: int, code: int) -> None:
    assert suite.exit_code(pytest_code) == code


@pytest.mark.nightly
def test_the_suite_is_found_from_anywhere(tmp_path: Path) -> None:
    """Only collected here: what `unforgotten verify` would run."""
    words = [*suite.command("ci", tmp_path / "report.xml"), "--collect-only"]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "ci"}
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_third_party.py::test_contracts__can_each_be_broken" in done.stdout

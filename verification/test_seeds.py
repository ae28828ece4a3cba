from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unforgotten.verification.recording.seeds import as_object, collect, sampled_files

FAILS_UNDER_TWO = """
import pytest
from unforgotten.verification.chance import assert_mean, rng_for, sample_seed

@pytest.mark.statistical
def test_draws():
    assert_mean(rng_for("x").uniform(size=1000), 0.5)

@pytest.mark.statistical
def test_lucky():
    assert sample_seed() != 2

def test_not_marked():
    assert False
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "test_lucky_sample.py"
    path.write_text(FAILS_UNDER_TWO)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = statistical: draws samples\n")
    return str(path)


def seeds(*options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: it forks, which the threads of a library loaded here would not survive."""
    command = [sys.executable, "-m", "unforgotten.verification.recording.seeds", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_seeds__run_apart_and_name_what_fails(target: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "seeds.json"
    done = seeds("--first", "1", "--seeds", "3", "--log", str(log), target)
    assert done.returncode == 1, done.stderr
    result = json.loads(log.read_text())
    assert [r["seed"] for r in result["runs"]] == [1, 2, 3]
    assert [len(r["failed"]) for r in result["runs"]] == [0, 1, 0]
    assert [r["passed"] for r in result["runs"]] == [2, 1, 2]
    assert "test_lucky" in result["runs"][1]["failed"][0]
    assert "sample_seed() != 2" in result["runs"][1]["output"]
    assert result["seeds"] == 3
    assert result["seeds_with_a_failure"] == 1
    assert result["comparisons"] == 3
    assert "seed 2: 1 passed, 1 failed" in done.stderr


def test_main__ends_with_0_where_no_seed_fails(target: str, tmp_path: Path) -> None:
    done = seeds("--first", "3", "--seeds", "1", "--log", str(tmp_path / "log.json"), target)
    assert done.returncode == 0, done.stderr


def test_collect__refuses_a_file_without_such_tests(tmp_path: Path) -> None:
    (tmp_path / "test_exact_only.py").write_text("def test_exact():\n    pass\n")
    with pytest.raises(ValueError, match="must hold statistical tests"):
        collect([str(tmp_path / "test_exact_only.py")])


def test_as_object__counts_a_process_that_ended_early() -> None:
    lost = {
        "seed": 1,
        "code": 9,
        "passed": 0,
        "failed": ["the process ended early"],
        "comparisons": 0,
        "seconds": 0.0,
        "cpu_seconds": 0.0,
    }
    assert as_object([lost])["seeds_with_a_failure"] == 1
    assert as_object([])["seeds"] == 0


def test_sampled_files__are_the_files_of_this_folder() -> None:
    names = {Path(path).name for path in sampled_files()}
    assert {"test_flips.py", "test_power.py"} <= names
    assert "test_bitsandbytes.py" not in names

"""A run that is killed at random moments, again and again, ends with the rows of one that was left alone."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

MICRO = Path(__file__).parents[1] / "micro.yaml"
CALL = ["run", str(MICRO), "--set", "only_methods=[GA_KLR, NPO]", "--set", "formats=[nf4-b64]", "--quiet", "--resume"]
KILLS = 20
LIFE_SECONDS = 6.0  # a life lasts a random share of it, from the end of the imports; how long decides nothing else
HANG_SECONDS = 3600
LOADED = """
import transformers
from unforgotten.cli import main
import unforgotten.experiments.fan_out, unforgotten.reports.run.build
print("loaded", flush=True)
main()
"""
"""The command, which says when it begins."""


def live(out: Path, seconds: float | None) -> bool:
    """Run for so long, or to the end; return whether it was killed."""
    command = [sys.executable, "-P", "-c", LOADED, *CALL, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loaded\n"
        try:
            _, said = process.communicate(timeout=HANG_SECONDS if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert seconds is not None, "hangs"
            return True
    assert process.returncode == 0, said
    return False


def written(out: Path) -> dict[str, bytes]:
    """What a run leaves beside its models and its report."""
    paths = [out / "rows.jsonl", out / "stages.json", out / "config.json", *sorted((out / "items").iterdir())]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.nightly
def test_rows_are_the_same_after_kills_at_random_moments(tmp_path: Path) -> None:
    """A run that ends between two kills is compared and followed by a new one; the last is left to end."""
    live(tmp_path / "whole", None)
    whole = written(tmp_path / "whole")
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        if live(tmp_path / str(runs), LIFE_SECONDS * rng.random()):
            kills += 1
            continue
        assert written(tmp_path / str(runs)) == whole
        runs += 1
    live(tmp_path / str(runs), None)
    assert written(tmp_path / str(runs)) == whole
    print(f"{kills} kills in {runs + 1} runs")

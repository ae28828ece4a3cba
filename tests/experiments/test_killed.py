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
LONGEST_LIFE = 4  # a life ends before this part of the calls of a whole run: most runs then have several
HANG_SECONDS = 3600
COUNTED = """
import os, signal, sys
import transformers
import unforgotten.experiments.fan_out, unforgotten.reports.run.build
from unforgotten.cli import main

last, calls = int(sys.argv.pop(1)), 0

def count(frame, event, argument):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)

sys.setprofile(count)
try:
    main()
finally:
    sys.setprofile(None)
    print("calls", calls)
"""
"""The command, killed at a call or return of this number, in Python or of what is not Python; 0 is none."""


def live(out: Path, last: int) -> int | None:
    """Run to this call, or to the end; return the number of calls, None where it was killed."""
    command = [sys.executable, "-P", "-c", COUNTED, str(last), *CALL, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    if done.returncode == -signal.SIGKILL and last:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("calls ")[2])


def written(out: Path) -> dict[str, bytes]:
    """What a run leaves beside its models and its report."""
    paths = [out / "rows.jsonl", out / "stages.json", out / "config.json", *sorted((out / "items").iterdir())]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.mark.nightly
def test_rows_are_the_same_after_kills_at_random_moments(tmp_path: Path) -> None:
    """A run that ends between two kills is compared and followed by a new one; the last is left to end."""
    calls = live(tmp_path / "whole", 0)
    assert calls is not None
    whole, rng, kills, runs = written(tmp_path / "whole"), random.Random(0), 0, 0
    while kills < KILLS:
        if live(tmp_path / str(runs), rng.randint(1, calls // LONGEST_LIFE)) is None:
            kills += 1
            continue
        assert written(tmp_path / str(runs)) == whole
        runs += 1
    live(tmp_path / str(runs), 0)
    assert written(tmp_path / str(runs)) == whole
    print(f"{kills} kills in {runs + 1} runs of {calls} calls")

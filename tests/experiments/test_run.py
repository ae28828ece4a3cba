"""The whole loop on a model of no size: every stage, kill and resume, agreement with the audit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.records.metrics import ASSUMED

MICRO = Path(__file__).parents[1] / "micro.yaml"
CUT = ["--set", "only_methods=[GA_KLR, NPO]"]
CALL = ["run", str(MICRO), *CUT]
HANG_SECONDS = 3600  # a net under a process that does not end: it takes half a minute
KILLED = """
import os, signal, sys
from unforgotten.records import store as rows

lines, write_json = int(sys.argv.pop(1)), rows.write_json

def write_or_die(path, content):
    if path.name == "stages.json" and sum(content.values()) >= lines:
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, content)

rows.write_json = write_or_die
from unforgotten.cli import main
main()
"""
"""The command, killed where the rows of a stage are on disk and the stage is not noted yet: the first with so many."""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return call("-m", "unforgotten.cli", *CALL, "--out", str(out), *more)


def finish(out: Path, *more: str) -> list[str]:
    """What the whole command said on standard error, line by line."""
    done = run(out, *more)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def whole_and_said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("run") / "whole"
    return out, finish(out)


@pytest.fixture(scope="module")
def whole(whole_and_said: tuple[Path, list[str]]) -> Path:
    return whole_and_said[0]


def ends(said: list[str]) -> list[tuple[int, int, str]]:
    """Number, total and name of each stage that said it was done."""
    found = (re.fullmatch(r"\[ *(\d+)/(\d+)\] ([^:]+): .*done in .*", line) for line in said)
    return [(int(match[1]), int(match[2]), match[3]) for match in found if match]


def test_a_log_has_one_line_a_stage(whole_and_said: tuple[Path, list[str]]) -> None:
    from unforgotten.experiments.load_config import load_config
    from unforgotten.experiments.run import stages

    out, said = whole_and_said
    keys = [*stages(load_config(str(MICRO), overrides=CUT[1:])), "report"]
    names = [re.sub(r"unlearned-(\w+)-", r"\1 ", key) for key in keys]
    assert ends(said) == [(k, len(keys), name) for k, name in enumerate(names, 1)]
    assert {"unlearn GA_KLR bf16", "decompose NPO fp32 nf4-b64"} <= set(names)
    steps = next(line for line in said if "] unlearn NPO bf16:" in line and "done in" in line)
    assert re.search(r": 4/4 steps, forget loss \d+\.\d\d, done in ", steps)
    assert said[-1].startswith("done in ")
    assert all(line.startswith("[") for line in said[:-1])
    done = json.loads((out / "stages.json").read_text())
    assert "unlearned-GA_KLR-bf16" in str(done)  # the names in files are not those in the log


def rows_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_rows_carry_every_field_and_metric_of_the_contract(whole: Path) -> None:
    rows = rows_of(whole)
    fields = {
        "model",
        "method",
        "storage",
        "lr",
        "seed",
        "format",
        "metric",
        "value",
        "stderr",
        "n",
        "items",
        "config",
        "revision",
        "dtypes",
        "device",
        "products",
        "rounding",
        "processor",
        "evaluation_dtype",
    }
    assert {row["evaluation_dtype"] for row in rows} == {"float32"}
    assert all(fields <= set(row) for row in rows)
    kinds = {"parameters", "master", "moments", "checkpoint"}
    assert all(set(row["dtypes"]) == kinds for row in rows)  # type: ignore[call-overload]
    seen = {row["metric"] for row in rows if row["method"] == "NPO" and row["format"] == "nf4-b64"}
    assert seen >= {
        "M1",
        "M2",
        "M3",
        "M4",
        "forget_loss",
        "retain_loss",
        "gain",
        "cosine",
        "code_flips",
        "expected_flips",
        "value_changes",
        "unchanged_fraction",
        "gating_effect",
        "base_shift_effect",
        "rho_M1",
        "rho_forget_loss",
    }
    assert {row["model"] for row in rows} == {"base", "target", "retrained", "unlearned", ASSUMED}


def test_rows_say_how_each_arm_computed(whole: Path) -> None:
    from unforgotten.experiments.arms.products import resolve
    from unforgotten.experiments.likeness import STAGE

    narrow = {"native": "native bfloat16", "float32": "float32 rounded to bfloat16"}[resolve("auto")]
    found = {
        (row["storage"], row["dtypes"]["moments"], row["products"], row["rounding"])  # type: ignore[index]
        for row in rows_of(whole)
        if row["stage"] != STAGE
    }
    assert found == {
        (None, "float32", "float32", "nearest"),  # base, target, retrained
        ("fp32", "float32", "float32", "nearest"),
        ("bf16", "bfloat16", narrow, "nearest"),
        ("bf16-sr", "bfloat16", narrow, "stochastic"),
    }


def test_items_average_to_the_value(whole: Path) -> None:
    row = next(r for r in rows_of(whole) if r["metric"] == "M2" and r["format"] == "nf4-b64")
    items = json.loads((whole / str(row["items"])).read_text())["M2"]
    assert len(items) == row["n"]
    assert sum(items) / len(items) == pytest.approx(row["value"])


def test_models_load_in_transformers_with_the_dtype_of_their_arm(whole: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, dtype in (("NPO-bf16", torch.bfloat16), ("NPO-bf16-sr", torch.bfloat16), ("NPO-fp32", torch.float32)):
        folder = whole / f"models/unlearned-{name}"
        assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == dtype
        assert AutoTokenizer.from_pretrained(folder).bos_token == "<s>"


def test_decomposition_adds_up(whole: Path) -> None:
    rows = [r for r in rows_of(whole) if r["method"] == "GA_KLR" and r["format"] == "int4-g64"]
    value = {(r["metric"], r["storage"]): r["value"] for r in rows}
    for storage in ("fp32", "bf16", "bf16-sr"):
        parts = [value[f"{part}_effect", storage] for part in ("gating", "base_shift")]
        assert sum(parts) == pytest.approx(value["lost_effect", storage])  # type: ignore[arg-type]


@pytest.mark.parametrize("lines", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (3, 60)), 200])
def test_killed_and_resumed_run_has_identical_rows(whole: Path, tmp_path: Path, lines: int) -> None:
    out = tmp_path / "cut"
    killed = call("-P", "-c", KILLED, str(lines), *CALL, "--out", str(out))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert lines <= len(rows_of(out)) < len(rows_of(whole))
    noted = out / "stages.json"
    assert not noted.exists() or sum(json.loads(noted.read_text()).values()) < lines
    said = finish(out, "--resume")
    assert (out / "rows.jsonl").read_text() == (whole / "rows.jsonl").read_text()
    before = re.fullmatch(r"\[ *(\d+)/(\d+)\] \1 stages were done before", said[0])
    assert before
    first, total = int(before[1]) + 1, int(before[2])
    assert [k for k, _, _ in ends(said)] == list(range(first, total + 1))


def test_a_whole_run_that_goes_on_has_nothing_to_do(whole: Path) -> None:
    said = finish(whole, "--resume")
    assert re.fullmatch(r"\[(\d+)/\d+\] \1 stages were done before", said[0])
    (report,) = ends(said)  # a slow machine says how far it is in between, too
    assert report[2] == "report"
    assert said[-1].startswith("done in ")
    assert finish(whole, "--resume", "--quiet") == []


def test_half_a_line_and_rows_of_an_unfinished_stage_are_dropped(whole: Path, tmp_path: Path) -> None:
    from unforgotten.records.store import RowStore

    text = (whole / "rows.jsonl").read_text()
    unfinished = json.dumps({**json.loads(text.splitlines()[0]), "stage": "never finished"})
    (tmp_path / "rows.jsonl").write_text(f'{text}{unfinished}\n{{"model": "targ')
    (tmp_path / "stages.json").write_text((whole / "stages.json").read_text())
    RowStore(tmp_path, {})
    assert (tmp_path / "rows.jsonl").read_text() == text


def test_audit_agrees_with_run_to_the_last_digit(whole: Path, tmp_path: Path) -> None:
    pair = [str(whole / "models" / name) for name in ("target", "unlearned-GA_KLR-bf16")]
    more = ["--formats", "int4-g64,nf4-b64", "--out", str(tmp_path)]
    done = call("-m", "unforgotten.cli", "audit", "--json", *pair, *more)
    assert done.returncode == 0, done.stderr
    audited = {(f["format"], f["grid"]): f for f in json.loads(done.stdout)["formats"]}
    rows = [r for r in rows_of(whole) if (r["method"], r["storage"]) == ("GA_KLR", "bf16")]
    compared = 0
    for row in rows:
        metric, _, grid = str(row["metric"]).partition("@")
        result = audited.get((row["format"], grid or "adaptive"), {})
        if metric in ("gain", "cosine", "code_flips", "expected_flips", "value_changes"):
            assert result[metric] == row["value"], row
            compared += 1
    assert compared == 2 * 2 * 5


def test_a_second_run_into_the_same_folder_is_refused(whole: Path) -> None:
    before = (whole / "rows.jsonl").read_bytes()
    done = run(whole)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--resume" in done.stderr
    assert (whole / "rows.jsonl").read_bytes() == before


def test_resume_with_another_configuration_is_refused(whole: Path) -> None:
    done = run(whole, "--resume", "--seed", "5")
    assert done.returncode == 2
    assert "configuration" in done.stderr

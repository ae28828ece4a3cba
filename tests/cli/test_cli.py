"""The command line: one line and code 2 for bad input, --json, codes of --fail-on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.cli import main
from unforgotten.printing import print_mapping

MICRO = str(Path(__file__).parents[1] / "micro.yaml")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(*arguments: str, cwd: Path | None = None) -> Done:
    """Run the command line in this process, as the console script does."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        patch.object(sys, "argv", ["unforgotten", *arguments]),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return Done(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def save(folder: Path, tensors: dict[str, NDArray[np.float32]]) -> str:
    """One bfloat16 safetensors file, written by hand: the base install has no safetensors."""
    folder.mkdir()
    header: dict[str, object] = {}
    data = b""
    for name, values in tensors.items():
        raw = values.astype(ml_dtypes.bfloat16).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(folder)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    w = np.random.default_rng(0).normal(0, 0.02, (64, 128)).astype(np.float32)
    moved = w + np.float32(0.001)
    return (save(tmp_path / "target", {"layer.weight": w}), save(tmp_path / "unlearned", {"layer.weight": moved}))


def assert_refused(done: Done, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no-such-profile"], ["profile", "no-such-profile", "tiny"]),
        (["run", "missing.yaml"], ["missing.yaml"]),
        (["run", MICRO, "--set", "unlearning.methods={GD: {}}"], ["method", "GD", "NPO_KLR"]),
        (["run", MICRO, "--set", "only_methods=[SURE]"], ["only_methods", "SURE"]),
        (["run", MICRO, "--set", "formats=[int4-g64, q9]"], ["format", "q9", "nf4-bN"]),
        (["run", MICRO, "--set", "unlearning.lr.bf16=-1"], ["unlearning.lr.bf16", "-1"]),
        (["run", MICRO, "--set", "corpus.passages=few"], ["corpus.passages", "few"]),
        (["run", MICRO, "--set", "no.such.section=1"], ["no"]),
        (["run", MICRO, "--set", "seed"], ["a.b=value", "seed"]),
        (["run", MICRO, "--seed", "-1"], ["seed", "-1"]),
        (["run", MICRO, "--seed", "many"], ["--seed", "integer"]),
        (["run", MICRO, "--nonsense"], ["--nonsense"]),
        (["nonsense"], ["nonsense"]),
        (["report", "no-such-folder"], ["no-such-folder"]),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(call(*arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    with patch("unforgotten.experiments.fan_out.run", side_effect=KeyboardInterrupt):
        done = call("run", MICRO, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; go on with --resume\n"


def test_a_missing_corpus_directory_is_refused(tmp_path: Path) -> None:
    muse = ["--set", "corpus.kind=muse", "--set", f"corpus.path={tmp_path / 'none'}"]
    done = call("run", MICRO, *muse, "--out", str(tmp_path / "out"))
    assert_refused(done, "corpus.path", str(tmp_path / "none"))


def test_audit_of_a_pair(pair: tuple[str, str], tmp_path: Path) -> None:
    done = call("audit", *pair, "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/audit.json").read_text())
    ends = [line.partition("done in")[0] for line in done.stderr.splitlines() if "done in" in line]
    stages = ["[1/3] open: ", "[2/3] weights: 1/1 tensors, ", "[3/3] findings and files: "]
    assert ends == [*stages, ""]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "audit.json",
        "audit.html",
        "tensors.parquet",
        "model-card.md",
        "audit.sarif",
        "audit.junit.xml",
    }


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [("undecided", 1), ("swallowed,no-update", 0), ("passes", 1), ("undone", 2), ("survives", 2), ("retain-lost", 2)],
)
def test_fail_on(pair: tuple[str, str], tmp_path: Path, verdicts: str, code: int) -> None:
    done = call("audit", *pair, "--out", str(tmp_path / "out"), "--fail-on", verdicts)
    assert done.returncode == code
    assert (tmp_path / "out/audit.json").exists() == (code < 2)
    if code < 2:
        assert done.stdout.splitlines()[-1].startswith(f"exit {code}: ")
    else:
        assert_refused(done, "--fail-on", verdicts, "--benchmark")


def test_with_json_the_reason_of_the_code_goes_to_standard_error(pair: tuple[str, str], tmp_path: Path) -> None:
    done = call("audit", *pair, "--out", str(tmp_path / "out"), "--json", "--fail-on", "passes")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"]["overall"] == "undecided"
    assert done.stderr.splitlines()[-1] == "exit 1: --fail-on passes: the weights say passes"


def test_formats_given_twice_are_both_audited(pair: tuple[str, str], tmp_path: Path) -> None:
    asked = ("--formats", "int4-g64", "--formats", "int8-row,int4-g64")
    done = call("audit", *pair, *asked, "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["formats"]
    assert list(dict.fromkeys(row["format"] for row in rows)) == ["int4-g64", "int8-row"]


def test_one_checkpoint_twice_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pair[0])
    for other in (pair[0], f"{pair[0]}/", str(tmp_path / "link"), f"{tmp_path}/./target"):
        done = call("audit", pair[0], other, "--out", str(tmp_path / "out"), "--quiet")
        assert_refused(done, "unlearned must be another checkpoint than target", str(Path(other)))
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_or_a_checkpoint_is_written_to_by_force_alone(pair: tuple[str, str], tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "model-card.md").write_text("mine")
    others = tmp_path / "npm"
    others.mkdir()
    (others / "audit.json").write_text('{"vulnerabilities": {}}')
    for out in (str(foreign), str(others), pair[1]):
        before = {p: p.read_bytes() for p in Path(out).iterdir()}
        assert_refused(
            call("audit", *pair, "--out", out, "--quiet"), "--force", Path(out).name, next(iter(before)).name
        )
        assert {p: p.read_bytes() for p in Path(out).iterdir()} == before
        assert call("audit", *pair, "--out", out, "--quiet", "--force").returncode == 0
    assert "audit.json" in {p.name for p in foreign.iterdir()}


def test_an_earlier_audit_is_replaced_without_force(pair: tuple[str, str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"), "--quiet")
    assert call("audit", *pair, *out).returncode == 0
    assert call("audit", *pair, *out, "--formats", "int8-row").returncode == 0
    (tmp_path / "out/notes.txt").write_text("mine")
    assert_refused(call("audit", *pair, *out), "notes.txt", "--force")


@pytest.mark.parametrize("command", ["audit", "formats", "claims", "help", "version"])
def test_a_stdout_that_lacks_characters_gets_others_and_the_same_code(
    command: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    asked = {
        "audit": ["audit", *pair, "--out", str(tmp_path / "out"), "--fail-on", "passes"],
        "help": ["audit", "--help"],
        "version": ["--version"],
    }.get(command, [command])
    said = {}
    for encoding in ("utf-8", "cp1252", "ascii"):
        run = [sys.executable, "-m", "unforgotten.cli", *asked]
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "200"}
        done = subprocess.run(run, check=False, capture_output=True, env=environment)
        assert done.returncode == (1 if command == "audit" else 0), done.stderr
        said[encoding] = done.stdout.decode(encoding)
    words = {encoding: re.findall(r"[A-Za-z0-9]{2,}", text) for encoding, text in said.items()}
    assert words["cp1252"] == words["ascii"] == words["utf-8"]


def test_version_is_that_of_the_package() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"unforgotten {version('unforgotten')}\n")


def test_an_unknown_format_gets_the_nearest_known_one(pair: tuple[str, str]) -> None:
    for name, known in (
        ("int4_g64", "int4-g64"),
        ("NF4-b64", "nf4-b64"),
        ("q4_k_m", "gguf:Q4_K_M"),
        ("int8", "int8-row"),
    ):
        assert_refused(call("audit", *pair, "--formats", name), name, f"the nearest is {known!r}")


def test_an_error_follows_the_lines_of_the_stages_before_it(pair: tuple[str, str], tmp_path: Path) -> None:
    nan = save(tmp_path / "nan", {"layer.weight": np.full((64, 128), np.nan, np.float32)})
    done = call("audit", pair[0], nan, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    *said, error = done.stderr.splitlines()
    (end,) = (line for line in said if "done in" in line)
    assert end.startswith("[1/3] open: done in ")
    assert error.startswith("unforgotten: ")
    assert "nan" in error


def test_audit_refuses_bad_input(pair: tuple[str, str], tmp_path: Path) -> None:
    target, unlearned = pair
    out = ["--out", str(tmp_path / "out")]
    w = np.ones((64, 128), np.float32)
    nan = np.where(np.eye(64, 128), np.float32(np.nan), w)
    cut = save(tmp_path / "cut", {"layer.weight": w})
    shard = Path(cut, "model.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle/pytorch_model.bin").write_bytes(b"\x80\x04.")
    bad = {
        "missing": (str(tmp_path / "missing"), ["missing"]),
        "truncated": (cut, ["model.safetensors"]),
        "shape": (save(tmp_path / "s", {"layer.weight": w.T.copy()}), ["layer.weight", "128"]),
        "name": (save(tmp_path / "n", {"other.weight": w}), ["layer.weight"]),
        "nan": (save(tmp_path / "f", {"layer.weight": nan}), ["layer.weight", "nan"]),
        "pickle": (str(tmp_path / "pickle"), ["pytorch_model.bin"]),
    }
    for path, words in bad.values():
        assert_refused(call("audit", target, path, "--quiet", *out), *words)
    assert_refused(call("audit", target, unlearned, "--formats", "int4-g64,q9", *out), "q9")
    assert_refused(call("audit", target, unlearned, "--fail-on", "maybe", *out), "maybe")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("listing", ["formats", "methods", "models", "corpora", "metrics", "claims"])
def test_listings(listing: str) -> None:
    done = call(listing, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) >= (3 if listing == "corpora" else 5)
    assert call(listing).stdout


def test_a_listing_prints_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Of "[quantizers]" rich makes a style, and leaves it out."""
    print_mapping("format", {"int4[-asym]": "needs bitsandbytes: pip install 'unforgotten[quantizers]'"}, as_json=False)
    told = " ".join(word.strip("│ ") for word in capsys.readouterr().out.split())
    assert "int4[-asym]" in told
    assert "'unforgotten[quantizers]'" in told


def test_dry_run_lists_the_stages_and_writes_nothing(tmp_path: Path) -> None:
    done = call("run", MICRO, "--dry-run", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert len([s for s in told["stages"] if s.startswith("unlearn")]) == 6 * 3
    assert [work["stage"] for work in told["plan"]["works"]] == told["stages"]
    text = call("run", MICRO, "--dry-run", cwd=tmp_path).stdout
    assert not [stage for stage in told["stages"] if stage not in text]
    assert list(tmp_path.iterdir()) == []


def test_the_module_and_the_console_script_run() -> None:
    for command in ([sys.executable, "-m", "unforgotten.cli"], [str(Path(sys.executable).with_name("unforgotten"))]):
        listing = [*command, "formats", "--json"]
        done = subprocess.run(listing, capture_output=True, text=True, check=True)
        assert "nf4-bN" in json.loads(done.stdout)


def test_help_names_every_command() -> None:
    text = call("--help").stdout
    for name in ("run", "audit", "report", "formats", "methods", "models", "metrics", "claims"):
        assert name in text

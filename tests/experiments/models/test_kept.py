"""An audit that was cut off goes on: what its models answered is kept, by what decides it, until the result is written."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the models need unforgotten[experiments]")

from unforgotten.audit.outputs.place import check_out
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.metrics import examined
from unforgotten.experiments.models import generation, scoring
from unforgotten.experiments.models.kept import Kept
from unforgotten.records.files import KEPT, drop_kept

FORMATS = ("int4-g64",)
OTHER_ORDER = 64 * 2.0**-24
"""Of a mean of float32 losses, where products of 64 terms are summed in another order."""


class Cut(Exception):
    """The process was cut off."""


def test_a_leg_that_was_cut_off_ends_as_one_that_was_not(
    micro_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = (micro_pair / "models/target", micro_pair / "models/unlearned")
    corpus, retrained = micro_pair / "corpus", micro_pair / "models/retrained"
    whole = behaviour_leg(*pair, FORMATS, corpus, retrained=retrained)
    left = 12

    def asked(answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            return answer(*args)

        return ask

    monkeypatch.setattr(examined, "token_scores", asked(scoring.token_scores))
    monkeypatch.setattr(examined, "generate", asked(generation.generate))
    kept = tmp_path / "unfinished"
    with pytest.raises(Cut):
        behaviour_leg(*pair, FORMATS, corpus, retrained=retrained, unfinished=kept)
    assert len(list(kept.iterdir())) == 12
    left = 1000
    assert behaviour_leg(*pair, FORMATS, corpus, retrained=retrained, unfinished=kept) == whole
    asked_again = 1000 - left
    left = 0
    assert behaviour_leg(*pair, FORMATS, corpus, retrained=retrained, unfinished=kept) == whole
    assert asked_again == len(list(kept.iterdir())) - 12


def test_long_texts_are_kept_part_by_part(micro_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has as many documents as its tokens allow, or one; answers of all of them are those of the whole."""
    pair = (micro_pair / "models/target", micro_pair / "models/unlearned")
    whole = behaviour_leg(*pair, FORMATS, micro_pair / "corpus", decompose=False)
    counts = []
    for tokens in (examined.PART_TOKENS, 100, 1):
        monkeypatch.setattr(examined, "PART_TOKENS", tokens)
        kept = tmp_path / str(tokens)
        leg = behaviour_leg(*pair, FORMATS, micro_pair / "corpus", decompose=False, unfinished=kept)
        counts.append(len(list(kept.iterdir())))
        for name in ("forget_loss", "retain_loss"):  # batches of other widths add in another order, in 24 bits
            own, expected = (found["metrics"]["target"][name] for found in (leg, whole))
            assert own == pytest.approx(expected, rel=OTHER_ORDER), name
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


@given(lengths=st.lists(st.integers(0, 9), max_size=20), tokens=st.integers(1, 12))
def test_parts_hold_all_documents_in_order_and_no_more_tokens_than_asked(lengths: list[int], tokens: int) -> None:
    documents = [[i] * length for i, length in enumerate(lengths)]
    parts = list(examined.parts_of(documents, tokens))
    assert [document for part in parts for document in part] == documents
    for part in parts:
        assert len(part) == 1 or sum(map(len, part)) <= tokens
    for before, after in itertools.pairwise(parts):
        assert sum(map(len, before)) + len(after[0]) > tokens


def test_rows_are_kept_by_all_that_decides_them(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    rows = [np.array([0.1, np.nan], np.float32), np.array([], np.float32), np.array([1.0], np.float32)]
    for _ in range(2):
        for got, row in zip(kept.rows(["a", 1], lambda: rows), rows, strict=True):
            assert got.dtype == row.dtype
            np.testing.assert_array_equal(got, row)
    assert [list(row) for row in kept.rows(["a", 2], lambda: [[3]])] == [[3]]
    assert kept.rows(["none"], list) == kept.rows(["none"], lambda: rows) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_a_damaged_file_is_made_again(content: bytes, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.rows(["a"], lambda: [[1, 2]])
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert [list(row) for row in kept.rows(["a"], lambda: [[1, 2]])] == [[1, 2]]
    assert path.read_bytes() != content


def test_other_files_beside_kept_ones_stay(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    Kept(folder).rows(["a"], lambda: [[1]])
    check_out(tmp_path)
    (folder / "mine").write_text("x")
    with pytest.raises(ValueError, match="unfinished"):
        check_out(tmp_path)
    drop_kept(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_an_interrupted_audit_says_that_it_goes_on(micro_pair: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from unforgotten.experiments.metrics import examined\n"
        "examined.token_scores = lambda *a: os.kill(os.getpid(), signal.SIGINT)\n"
        "from unforgotten.cli import main\n"
        "main()\n"
    )
    called = ["audit", *(str(micro_pair / "models" / name) for name in ("target", "unlearned"))]
    options = ["--benchmark", str(micro_pair / "corpus"), "--formats", "int4-g64", "--out", "out", "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *called, *options]
        return subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, env=environment, check=False)

    cut = run(script)
    assert cut.returncode == -signal.SIGINT or cut.returncode == 130, cut.stderr
    assert cut.stderr == (
        "interrupted; no result was written; the same command goes on from what is in out/unfinished\n"
    )
    assert all(path.name.endswith(KEPT) for path in (tmp_path / "out/unfinished").iterdir())
    whole = run("from unforgotten.cli import main\nmain()\n")
    assert whole.returncode == 0, whole.stderr
    assert not (tmp_path / "out/unfinished").exists()

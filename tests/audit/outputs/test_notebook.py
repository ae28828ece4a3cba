"""An audit as an object: a dict as before, which shows itself as text and HTML and gives its tensors as a table."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import unforgotten
from unforgotten.audit.outputs.notebook import PairAudit
from unforgotten.audit.outputs.parquet import COLUMNS

FORMATS = ["int4-g64", "int8-row"]
STRANGE = "<script>alert(1)</script>.weight"
FAKE_PANDAS = (
    "class DataFrame:\n    def __init__(self, rows, columns):\n        self.rows, self.columns = rows, columns\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook") / "out"


@pytest.fixture(scope="module")
def found(folder: Path) -> PairAudit:
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (32, 64)).astype(np.float32)
    moved = (w + rng.normal(0, 1e-3, w.shape)).astype(np.float32)
    return unforgotten.audit_pair({STRANGE: w}, {STRANGE: moved}, FORMATS, folder)


def test_it_is_the_dict_of_the_file(found: PairAudit, folder: Path) -> None:
    written = json.loads((folder / "audit.json").read_text("utf-8"))
    assert isinstance(found, dict)
    assert json.loads(json.dumps(found, allow_nan=False)) == written
    assert found["verdict"]["overall"] == "undecided"


def test_copies_and_pickles_keep_the_tensors(found: PairAudit) -> None:
    for same in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert same == found
        assert same.tensors == found.tensors


def test_its_tensors_are_the_rows_of_the_table(found: PairAudit, folder: Path) -> None:
    assert found.tensors == pq.read_table(folder / "tensors.parquet").to_pylist()
    assert {row["name"] for row in found.tensors} == {STRANGE}
    assert list(found.tensors[0]) == COLUMNS.names


def test_its_text_is_the_summary_without_colours(found: PairAudit) -> None:
    text = str(found)
    assert text == repr(found)
    assert text.startswith("Verdict: undecided\n")
    assert all(name in text for name in FORMATS)
    assert "Audited: target (in memory) → unlearned (in memory)" in text
    assert "\x1b" not in text


def test_its_html_is_the_first_screen_and_nothing_that_runs(found: PairAudit) -> None:
    page = found._repr_html_()
    assert "Verdict: undecided" in page
    assert page.count("<tr>") == 1 + len(FORMATS)
    assert "To decide: --texts FILE" in page
    assert not re.search(r"<script|<style|<link|<img|https?:|\son\w+=", page)


def test_names_in_its_html_are_escaped(found: PairAudit) -> None:
    strange: Any = {**found, "notes": [f"read {STRANGE} & more"]}
    page = PairAudit(strange, [])._repr_html_()
    assert "<script" not in page
    assert "read &lt;script&gt;alert(1)&lt;/script&gt;.weight &amp; more" in page


def test_without_pandas_one_line_says_what_to_install(found: PairAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^pandas is missing: pip install 'pandas'$"):
        found.to_pandas()


def test_with_pandas_the_tensors_are_a_frame(found: PairAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pandas, which this project does not need: it keeps what it is called with."""
    pandas = ModuleType("pandas")
    pandas.__spec__ = ModuleSpec("pandas", None)
    pandas.__dict__["DataFrame"] = lambda rows, columns: (rows, columns)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert found.to_pandas() == (found.tensors, COLUMNS.names)

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unforgotten.theory.claims import load_claims
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.proofs.run import load_proofs
from unforgotten.verification.recording.recorded import SCHEMA
from unforgotten.verification.recording.report_plugin import HTML, JSON, name_of, page
from unforgotten.verification.recording.tallies import (
    ACTIVE,
    Report,
    as_object,
    claim_names,
    fingerprint,
    fingerprints,
    record,
)

FMT = format_named("int4-g8")
TESTS = """
from __future__ import annotations
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from unforgotten.theory.proofs.run import load_proofs
from unforgotten.verification.recording.tallies import record

@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(st.booleans())
def test_cells__two_examples(b): pass

@settings(max_examples=20, derandomize=True, database=None, deadline=None)
@given(st.data())
def test_cells__interactive(data): data.draw(st.booleans())

@pytest.mark.parametrize("x", [1, 2, 3])
def test_flip_probability__three_cases(x): pass

def test_lost_effect__fails(): assert False

def test_total_variation_upper_bound__records():
    record("total_variation_upper_bound", "a", rows=(np.arange(5.0), np.zeros(5)), ratio=0.5)
    record("total_variation_upper_bound", "a", rows=(np.arange(3.0), np.zeros(3)), ratio=0.25)
    record("total_variation_upper_bound", "b", exhaustive=65536)

def test_nothing__is_a_claim(): pass

PROOF = min(load_proofs())
@pytest.mark.parametrize("registered", [PROOF], ids=[PROOF])
def test_proofs__hold(registered): pass

@pytest.mark.skip(reason="shown")
def test_frozen_exponent__skipped(): pass
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of TESTS, with the plugin alone."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "test_some.py").write_text(TESTS)
    (folder / "conftest.py").write_text(
        "from pathlib import Path\n"
        "from unforgotten.verification.recording.report_plugin import Plugin\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(Plugin(Path(__file__).parent / 'out', 'dev'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert "1 failed, 8 passed, 1 skipped" in done.stdout, done.stdout
    return folder / "out"


@pytest.fixture(scope="module")
def content(written: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((written / JSON).read_text())
    return loaded


def row(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in content["claims"] if c["function"].endswith(f".{name}"))


def test_report__counts_distinct_configurations(content: dict[str, Any]) -> None:
    """Two booleans; the interactive draw's two by its choices; three cases; five distinct rows of eight."""
    counted = {
        name: row(content, name)["configurations"]
        for name in ("cells", "flip_probability", "total_variation_upper_bound", "drift_nothing")
        if name in claim_names()
    }
    assert counted == {"cells": 4, "flip_probability": 3, "total_variation_upper_bound": 5}
    assert row(content, "total_variation_upper_bound")["exhaustive_cases"] == 65536
    assert content["configurations"] == 4 + 3 + 5
    assert content["exhaustive_cases"] == 65536


def test_report__says_tightness_violations_and_skips(content: dict[str, Any]) -> None:
    assert content["schema"] == SCHEMA
    assert row(content, "total_variation_upper_bound")["tightness"] == {"ratio": 0.5, "at": "a"}
    assert row(content, "lost_effect")["violations"] == content["violations"] == 1
    assert row(content, "frozen_exponent")["tests"] == {"skipped": 1}
    assert row(content, "gated_mean")["configurations"] == 0
    assert [o["name"] for o in content["others"]] == ["nothing", "proofs"]
    assert len(content["claims"]) == len(load_claims())
    assert content["statistics"]["false_alarm_each"] == 1e-10


class Links(HTMLParser):
    """Whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href")]


def test_page__loads_nothing_and_escapes(written: Path, content: dict[str, Any]) -> None:
    links = Links()
    links.feed((written / HTML).read_text())
    assert links.loaded == []
    content["claims"][0]["statement"] = "<script>alert(1)</script> a < b"
    shown = page(content)
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt; a &lt; b" in shown


def test_record__does_nothing_without_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unforgotten.verification.recording.tallies.ACTIVE", [])
    record("no such claim", object(), ratio=2.0)


def test_record__refuses_other_names_and_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unforgotten.verification.recording.tallies.ACTIVE", [Report()])
    with pytest.raises(ValueError, match="must be the function of a claim"):
        record("no_such_claim", 1)
    with pytest.raises(ValueError, match="must be plain values"):
        record("cells", object())


def test_record__keeps_the_largest_ratio_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    monkeypatch.setattr("unforgotten.verification.recording.tallies.ACTIVE", [report])
    for ratio, where in ((0.5, "a"), (0.75, "b"), (0.25, "c")):
        record("cells", FMT, where, np.zeros(3), ratio=ratio)
    assert (report.of("cells").ratio, report.of("cells").at) == (0.75, "int4-g8 b array(3,)")
    assert as_object(report, "dev", 1.0)["configurations"] == 3


def test_fingerprint__tells_content_apart() -> None:
    values = [
        1,
        1.0,
        "1",
        True,
        None,
        (1,),
        [1, 2],
        ((1, 2),),
        {"a": 1},
        FMT,
        format_named("int4-g16"),
        np.zeros(2),
        np.zeros(2, np.float32),
        np.zeros((1, 2)),
        np.array([0.0, -0.0]),
        0.0,
        -0.0,
    ]
    found = [fingerprint(v) for v in values]
    assert len(set(found)) == len(values)
    assert found == [fingerprint(v) for v in values]
    assert fingerprint(object()) is None
    assert fingerprint((1, object())) is None


def test_fingerprints__tell_rows_apart_and_agree_on_equal_ones() -> None:
    """A million rows: with 64 bits two collide with probability 3e-8, and the rows are fixed."""
    rows = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
    hashed = fingerprints((rows,), 7)
    assert np.unique(hashed).size == len(rows)
    assert np.array_equal(fingerprints((rows[:5],), 7), hashed[:5])
    assert not np.intersect1d(fingerprints((rows,), 8), hashed).size
    assert fingerprints((rows[:1], rows[1:2]), 7) != fingerprints((rows[1:2], rows[:1]), 7)


def test_name_of__is_what_the_test_is_named_for() -> None:
    assert name_of("a/test_x.py::test_flip_rate__is[4-a]") == "flip_rate"
    assert name_of("a/test_x.py::Test::test_flip_rate__is") == "flip_rate"
    assert name_of("a/test_x.py::TestMachine::runTest") is None


def test_active__is_that_of_this_run_at_most() -> None:
    assert len(ACTIVE) <= 1


def test_report__names_the_proofs_that_ran(content: dict[str, Any]) -> None:
    first = min(load_proofs())
    assert {f: p["verdict"] for f, p in content["proofs"].items()} == {first: "holds"}


def test_report__is_refused_where_several_processes_would_count(tmp_path: Path) -> None:
    pytest.importorskip("xdist", reason="what runs tests in several processes")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--verification-report", str(tmp_path / "out"), __file__],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--verification-report counts in one process, got -n 2" in done.stderr
    assert not (tmp_path / "out").exists()

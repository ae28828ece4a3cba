"""The result object, its files, the page and the terminal summary."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import save_file

from unforgotten.audit import DEFAULT_FORMATS, VERDICTS, AuditResult, audit_pair, open_checkpoint, print_summary
from unforgotten.audit.findings.sentences import judge_gain
from unforgotten.audit.outputs.merged import top_reasons
from unforgotten.audit.outputs.result_rows import kolmogorov_tail
from unforgotten.theory.laws.update import GRID_MODES

HOSTILE = 'layers.0.<script>alert("1")</script>&[bold].weight'
ESCAPED = "layers.0.&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;[bold].weight"
EVIL_NORM = "\x1b[31mnorm\n<b>.weight"
FILES = {"audit.json", "tensors.parquet", "audit.html", "model-card.md", "audit.sarif", "audit.junit.xml"}
SIGNS = np.array([-1, 1], np.float32)
COARSE = 0.5  # smaller than half of int4's zero bin at absmax 7


def save(folder: Path, content: dict[str, NDArray[Any]]) -> Path:
    folder.mkdir(parents=True)
    save_file(content, folder / "model.safetensors")
    return folder


def start() -> dict[str, NDArray[Any]]:
    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    w[:, 0] = 7
    return {HOSTILE: w, "layers.1.weight": w[::-1].copy(), EVIL_NORM: np.ones(8, np.float32)}


def swallowed() -> dict[str, NDArray[Any]]:
    """All moved weights stay well inside the zero bin of int4-row, |w| < 0.5 at step 1."""
    return {
        n: np.where(np.abs(w) < COARSE / 2, w + COARSE / 8, w) if w.ndim == 2 else w + 1 for n, w in start().items()
    }


def passing() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    return {n: w + np.float32(0.1) * rng.choice(SIGNS, w.shape) for n, w in start().items()}


def audited(root: Path, end: dict[str, NDArray[Any]], formats: Sequence[str] = DEFAULT_FORMATS) -> AuditResult:
    """The audit of `start()` and `end`, written to `root / "out"`."""
    return audit_pair(save(root / "t", start()), save(root / "u", end), formats, root / "out")


def test_json_is_the_result_and_has_every_specified_field(tmp_path: Path) -> None:
    result = audited(tmp_path, passing())
    text = (tmp_path / "out" / "audit.json").read_text()
    assert json.loads(text) == result

    assert result["schema"] == "unforgotten.audit/1"
    for side, name in (("target", "t"), ("unlearned", "u")):
        source = dict(result)[side]
        assert isinstance(source, dict)
        assert source["source"] == str(tmp_path / name)
        assert source["revision"] is None
        assert source["sha256"] == open_checkpoint(tmp_path / name).sha256()
        assert source["dtypes"] == ["float32"]
    assert [(f["format"], f["grid"]) for f in result["formats"]] == [
        (f, g) for f in DEFAULT_FORMATS for g in GRID_MODES
    ]
    assert {"weights", "code_flips", "value_changes", "expected_flips", "gain", "cosine", "position", "wash"} <= set(
        result["formats"][0]
    )
    assert set(result["formats"][0]["position"]) == {"ks", "p"}
    assert set(result["formats"][0]["wash"]) == {"z", "p"}
    assert {"dtype", "unchanged_fraction", "dead_zone"} <= set(result["storage"])
    assert set(result["storage"]["dead_zone"]) == {"detected", "threshold", "lr_estimate"}
    assert set(result["verdict"]) == {"overall", "legs", "reasons"}
    assert set(result["verdict"]["legs"]) == {"weights", "output", "behaviour"}


def test_sha256_is_that_of_the_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", start())
    content = (folder / "model.safetensors").read_bytes()
    assert open_checkpoint(folder).sha256() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", ["same", "swallowed", "passing"])
def test_weights_alone_are_undecided(kind: str, tmp_path: Path) -> None:
    end, formats, words = {
        "same": (start(), DEFAULT_FORMATS, "no update"),
        "swallowed": (swallowed(), ["int4-row"], "swallowed"),
        "passing": (passing(), ["int4-row"], "passes"),
    }[kind]
    verdict = audited(tmp_path, end, formats)["verdict"]
    assert verdict["overall"] == "undecided"
    assert verdict["overall"] in VERDICTS
    assert verdict["legs"] == {"weights": words, "output": None, "behaviour": None}
    assert all(reason.isprintable() for reason in verdict["reasons"])
    assert "undecided" in verdict["reasons"][-1]


def test_no_update_has_no_ratios_and_says_so(tmp_path: Path) -> None:
    result = audited(tmp_path, start())
    assert {f["gain"] for f in result["formats"]} == {None}
    assert {f["cosine"] for f in result["formats"]} == {None}
    assert {f["wash"]["z"] for f in result["formats"]} == {None}
    assert result["verdict"]["reasons"][0].startswith("No update: all 16,384 weights of the 2 ")
    assert result["storage"]["dead_zone"] == {"detected": False, "threshold": None, "lr_estimate": None}


def test_swallowed_update_is_explained(tmp_path: Path) -> None:
    result = audited(tmp_path, swallowed(), ["int4-row", "int8-row"])
    assert result["verdict"]["legs"]["weights"] == "partly swallowed"
    reasons = "\n".join(result["verdict"]["reasons"])
    assert "int4-row: gain 0.00 ± 0.00: the update is swallowed" in reasons
    assert "the update avoids the thresholds" in reasons
    assert "deploy in a format that passes it: int8-row" in reasons
    assert "float32 while unlearning" not in reasons  # nothing says how it was trained
    assert "1 of the 1 tensors that quantizers leave alone" in reasons


@pytest.mark.parametrize(
    ("gain", "stderr", "finding"),
    [
        (math.nan, math.nan, "no update"),
        (0.0, 0.0, "swallowed"),
        (0.4, 0.04, "swallowed"),
        (0.4, 0.2, "partly swallowed"),
        (0.7, 0.05, "partly swallowed"),
        (0.4, 0.3, "unclear"),
        (1.0, 0.3, "unclear"),
        (1.0, 0.2, "passes"),
        (1.5, 0.1, "passes"),
        (-1.0, 0.1, "swallowed"),
    ],
)
def test_finding_follows_from_the_interval(gain: float, stderr: float, finding: str) -> None:
    assert judge_gain(gain, stderr) == finding


def test_kolmogorov_tail() -> None:
    """P[sqrt(n) D >= 1.358] = 0.05, the tabulated critical value, to its four digits."""
    assert f"{kolmogorov_tail(1.3581 / math.sqrt(400), 400):.4f}" == "0.0500"
    assert kolmogorov_tail(0.0, 400) == 1.0
    assert math.isnan(kolmogorov_tail(math.nan, 0))


def test_parquet_has_one_row_a_tensor_format_and_grid(tmp_path: Path) -> None:
    result = audited(tmp_path, passing())
    rows = pq.read_table(tmp_path / "out" / "tensors.parquet").to_pylist()
    keys = [(r["name"], r["format"], r["grid"]) for r in rows]
    names = sorted([HOSTILE, "layers.1.weight"])
    assert keys == [(n, f, g) for n in names for f in DEFAULT_FORMATS for g in GRID_MODES]
    assert rows[0]["shape"] == [64, 128]
    assert (rows[0]["dtype_target"], rows[0]["dtype_unlearned"]) == ("float32", "float32")
    for total in result["formats"]:
        parts = [r for r in rows if (r["format"], r["grid"]) == (total["format"], total["grid"])]
        assert sum(r["code_flips"] for r in parts) == total["code_flips"]
        assert sum(r["weights"] for r in parts) == total["weights"]


def test_parquet_holds_nulls_and_no_nan(tmp_path: Path) -> None:
    audited(tmp_path, start())
    table = pq.read_table(tmp_path / "out" / "tensors.parquet")
    for name in ("gain", "cosine", "position_ks", "position_p", "wash_z"):
        assert table[name].null_count == table.num_rows


def test_page_escapes_hostile_names_and_needs_nothing_else(tmp_path: Path) -> None:
    audited(tmp_path, passing())
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert ESCAPED in page
    assert page.count("<script") == page.count("<script>") == 1
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert "<b>.weight" not in page
    for word in ("http:", "https:", "src=", "@import", "url("):
        assert word not in page
    assert '<html lang="en">' in page
    assert page.count("<table") == page.count("<caption")
    assert page.count("<th ") == page.count("<th scope=")


@pytest.mark.parametrize("kind", ["same", "passing"])
def test_page_draws_what_there_is(kind: str, tmp_path: Path) -> None:
    audited(tmp_path, start() if kind == "same" else passing())
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert ("How much of the update is left" in page) == (kind == "passing")
    assert "Share of weights that moved" in page


def test_two_audits_write_the_same_bytes(tmp_path: Path) -> None:
    audited(tmp_path, passing(), ["nf4-b64"])
    audit_pair(tmp_path / "t", tmp_path / "u", ["nf4-b64"], tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_without_out_nothing_is_written(tmp_path: Path) -> None:
    audit_pair(save(tmp_path / "t", start()), save(tmp_path / "u", passing()), ["nf4-b64"])
    assert {path.name for path in tmp_path.iterdir()} == {"t", "u"}


@pytest.mark.parametrize("kind", ["same", "swallowed"])
def test_summary_begins_with_the_verdict_and_ends_with_the_code(kind: str, tmp_path: Path) -> None:
    result = audited(tmp_path, start() if kind == "same" else swallowed())
    console = Console(record=True, width=80, file=(tmp_path / "log").open("w"))
    print_summary(result, tmp_path / "out", console, last="exit 0: why")
    console.file.close()
    text = console.export_text()
    lines = text.splitlines()
    assert lines[0] == "Verdict: undecided"
    assert lines[1].startswith(f"weights: {result['verdict']['legs']['weights']} · output: not measured")
    assert lines[-1] == "exit 0: why"
    reasons = top_reasons(result)
    assert all(f"• {reason}\n" in text for reason in reasons)
    assert any(line.startswith("To decide: --texts FILE") for line in lines)
    rows = [i for i, line in enumerate(lines) if line.split()[:1] and line.split()[0] in DEFAULT_FORMATS]
    assert len(rows) == len(DEFAULT_FORMATS)
    assert max(rows) < min(i for i, line in enumerate(lines) if line.startswith("• "))
    assert all(f in text for f in DEFAULT_FORMATS)
    assert "\x1b" not in text
    assert str(tmp_path / "out" / "audit.html") in text


def test_import_leaves_heavy_packages_out() -> None:
    script = "import sys, unforgotten.audit; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "safetensors"} & set(done.stdout.split())

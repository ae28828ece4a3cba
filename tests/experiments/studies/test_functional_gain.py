"""The study of the functional gain: its slopes and bends are those of the forget loss, and its rows say what came back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="the study needs unforgotten[experiments]")

from unforgotten.experiments.data.corpus import read_fiction
from unforgotten.experiments.legs.functional import SHAMS, sham
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.studies.functional_gain import Pair, bend, measured, slopes
from unforgotten.records.files import read_json_lines
from unforgotten.reports.studies.functional_gain import cells_table, hits, hits_table
from unforgotten.reports.studies.sham import told
from unforgotten.theory.models.functional_gain import functional_gain

STEP = 2.0**-6
SUMS = 2.0**-20  # differences of two quantized float32 weights, taken in another order
SHAM_SPREAD = 0.1  # of the gain of a random update of some ten thousand weights: several standard deviations
NORMS = 2.0**-12  # of a difference of float32 weights that is a hundredth of them
NEAR = 0.02  # of a difference quotient in float32: its third order is below a hundredth here, rounding below that


@pytest.fixture(scope="module")
def pair(micro_pair: Path) -> Pair:
    config = load_config(str(Path(__file__).parents[2] / "micro.yaml"))
    tokenizer = load_tokenizer(micro_pair / "models/target")
    probes = make_probes(read_fiction(micro_pair / "corpus"), tokenizer, config)
    target, unlearned = (state_of(load_model(micro_pair / f"models/{name}")) for name in ("target", "unlearned"))
    return Pair(Shell(load_model(micro_pair / "models/target"), tokenizer), target, unlearned, probes.passages)


def moved(pair: Pair, by: float, along: dict[str, Any]) -> LazyState:
    base = pair.unlearned
    return LazyState(base, lambda k: base[k] + by * along[k] if k in along else base[k])


def test_slopes_and_bends_are_those_of_the_loss(pair: Pair) -> None:
    found = slopes(pair)
    assert set(found) == set(pair.shell.names)
    size = sum(float((g * g).sum()) for g in found.values())
    along = {k: g / size**0.5 for k, g in found.items()}
    up, down = (pair.loss(moved(pair, by, along)) for by in (STEP, -STEP))
    assert (up - down) / (2 * STEP) == pytest.approx(size**0.5, rel=NEAR)
    ahead, behind = (slopes(pair._replace(unlearned=moved(pair, by, along))) for by in (STEP, -STEP))
    turned = sum(float(((ahead[k] - behind[k]) * e).sum()) for k, e in along.items()) / (2 * STEP)
    assert bend(pair, along) == pytest.approx(turned, rel=NEAR)


def parts(pair: Pair, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return gradient, update and survivor."""
    after, before = (pair.flat(pair.shell.quantized(s, name)) for s in (pair.unlearned, pair.target))
    return pair.flat(slopes(pair)), pair.flat(pair.unlearned) - pair.flat(pair.target), after - before


def test_rows_say_what_came_back(pair: Pair) -> None:
    rows = list(measured(pair, ["int4-g64", "nf4-b64", "int4-g64-dither"], second_order=True))
    assert [row["format"] for row in rows] == ["int4-g64", "nf4-b64", "int4-g64-dither"]
    for row in rows:
        q = pair.shell.quantized(pair.unlearned, row["format"])
        assert row["came_back"] == pytest.approx(pair.loss(pair.unlearned) - pair.loss(q))
        assert row["functional_gain"] == pytest.approx(functional_gain(*parts(pair, row["format"])), rel=SUMS)
    assert rows[0]["first_order"] == rows[1]["first_order"]
    for row in rows:  # the update is larger than the cells: T6
        assert row["sham_gain"] == pytest.approx(1, abs=SHAM_SPREAD)
    g, q = pair.flat(slopes(pair)), pair.shell.quantized(pair.target, "int4-g64")
    shifts = []
    for seed in range(SHAMS):
        random = sham(pair.target, pair.unlearned, seed)
        left = pair.flat(pair.shell.quantized(random, "int4-g64")) - pair.flat(q)
        shifts.append(abs(g @ (left - pair.flat(random) + pair.flat(pair.target))) / abs(rows[0]["first_order"]))
    assert rows[0]["sham_shift"] == pytest.approx(max(shifts), rel=SUMS)


def test_random_updates_are_as_long_as_the_own_one_and_seeded(pair: Pair) -> None:
    first, again, other = (sham(pair.target, pair.unlearned, seed) for seed in (0, 0, 1))
    for name in pair.shell.names:
        moved = first[name] - pair.target[name]
        own = pair.unlearned[name] - pair.target[name]
        assert float(moved.norm()) == pytest.approx(float(own.norm()), rel=NORMS)
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_table_tells_gains_that_random_updates_do_not_explain() -> None:
    row = {"run": "demo", "method": "GA", "storage": "bf16", "format": "int4-g64", "gain": 0.5, "sham_gain": 0.98}
    row |= {"functional_gain": 0.8, "sham_shift": 0.1, "first_order": 0.5, "target_loss": 0.1, "loss": 0.6}
    row |= {"came_back_gating": 0.1, "came_back": 0.05}
    near = row | {"functional_gain": 1.05}
    wrong = row | {"came_back_gating": -0.1}
    assert told([row, near, wrong]).startswith("2 of 3 functional gains are further from 1")
    assert "in 1 of them" in told([row, near, wrong])


def test_hits_count_the_signs_that_were_said() -> None:
    row = {
        "method": "GA",
        "storage": "bf16",
        "seed": 0,
        "format": "int4-g64",
        "gain": 0.8,
        "functional_gain": 1.2,
        "first_order": 0.5,
        "second_order_share": -0.1,
        "target_loss": 0.1,
        "loss": 0.6,
        "came_back_gating": -0.05,
        "came_back": 0.1,
        "effective_weights": 1234.5,
        "share_at_most": None,
    }
    rows = [row, row | {"came_back_gating": 0.05}]
    assert hits(rows, "functional gain", "came_back_gating") == 1
    assert hits(rows[:1], "gain of the weights", "came_back_gating") == 0
    assert hits(rows, "gain of the weights", "came_back") == 2
    assert "| functional gain | 1 of 2 | 0 of 2 |" in hits_table(rows)
    assert "| GA | bf16 | 0 | int4-g64 | 0.80 | 1.20 | 1.10 | -10% | 20% |" in cells_table(rows)


def test_the_readme_says_what_the_rows_say() -> None:
    root = Path(__file__).parents[3]
    rows = read_json_lines(root / "reports/published/functional-gain/rows.jsonl")
    cells = [row for row in rows if row["storage"] == "bf16" and not row["format"].endswith("-dither")]
    assert {row["seed"] for row in cells} == set(range(5))
    assert {row["method"] for row in cells} == {"GA", "GA_GDR", "GA_KLR", "NPO", "NPO_GDR", "NPO_KLR"}
    said = [hits(cells, name, "came_back") for name in ("functional gain", "gain of the weights")]
    masters = [row for row in rows if row["storage"] == "fp32" and not row["format"].endswith("-dither")]
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert f"in {said[0]} of {len(cells)} bf16 cells (six methods, five seeds, trained anew)" in text
    family = sum((row["came_back"] > 0) == row["method"].startswith("NPO") for row in cells)
    assert f"where the method's family alone (back after NPO, further after GA) has it in {family} and" in text
    below = sum(row["gain"] < 1 for row in cells)
    assert f"the gain of the weights, below 1 in {below}, in {said[1]} (" in text
    assert f"its sign is told in {hits(masters, 'functional gain', 'came_back')} of {len(masters)}" in text

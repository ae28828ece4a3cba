"""The wash findings: placed updates are flagged in their format, honest ones are not, and each test by its own oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from unforgotten.audit import DEFAULT_FORMATS, audit_pair, open_pair, weights_leg
from unforgotten.audit.findings.wash import WASH_LEVEL, candidates, strata
from unforgotten.audit.weights.sums import Setting
from unforgotten.experiments.studies.audit_findings import synthetic_rows
from unforgotten.experiments.studies.pairs.audit_findings_pairs import NAMES, save_pair
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.laws.wash import permutation_wash_test, wash_test

LEAST_Z = 50.0
PLACED_SIZE = 0.05
U64, PRODUCTS = 2.0**-53, 4  # of an adjusted p-value, beside the len(tests) terms of 1 + 1/2 + …


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
@pytest.mark.parametrize(("kind", "sign"), [("washed", -1), ("aimed", 1)])
def test_an_update_placed_by_the_cells_of_nf4_is_flagged(kind: str, sign: int, seed: int, tmp_path: Path) -> None:
    result = audit_pair(*save_pair(tmp_path, kind, seed, "float32", PLACED_SIZE))
    found = [row for row in result["findings"] if row["id"] == "wash"]
    assert {row["format"] for row in found} == {"nf4-b64"}
    assert {row["tensor"] for row in found} == set(NAMES)
    (total,) = [f for f in result["formats"] if (f["format"], f["grid"]) == ("nf4-b64", "fixed")]
    assert total["wash"]["z"] is not None
    assert sign * total["wash"]["z"] > LEAST_Z
    for row in found:
        assert row["p"] is not None
        assert row["p"] <= WASH_LEVEL
        assert row["effect"] is not None
        assert sign * (row["effect"] - 1) > 0.5
        assert ("aims at" if sign > 0 else "avoids") in row["sentence"]


def test_a_washed_update_flips_no_code_of_its_format(tmp_path: Path) -> None:
    leg = weights_leg(*open_pair(*save_pair(tmp_path, "washed", 0, "float32", PLACED_SIZE)), ["nf4-b64"])
    assert leg.totals[Setting("nf4-b64", "fixed")].code_flips == 0
    assert leg.totals[Setting("nf4-b64", "fixed")].unchanged < 0.05 * leg.totals[Setting("nf4-b64", "fixed")].weights


def false_alarms(rows: Any) -> list[Any]:
    return [r for r in rows if r["wash"] and r["kind"] in ("gaussian", "sign")]


def test_honest_pairs_raise_no_alarm() -> None:
    """24 pairs of updates from 0.001 to 0.3 standard deviations; at most WASH_LEVEL each: 0.024 expected."""
    rows = list(synthetic_rows(honest=6, placed=0))
    assert len(rows) == 24
    assert false_alarms(rows) == []


@pytest.mark.nightly
def test_480_honest_pairs_raise_no_more_alarms_than_stated() -> None:
    """Binomial(480, WASH_LEVEL): more than 8 happens with probability 1e-8."""
    rows = list(synthetic_rows(placed=0))
    assert len(rows) == 480
    assert len(false_alarms(rows)) <= 8


def test_levels_are_those_of_benjamini_and_yekutieli(tmp_path: Path) -> None:
    leg = weights_leg(*open_pair(*save_pair(tmp_path, "aimed", 0, "float32", PLACED_SIZE)), DEFAULT_FORMATS)
    tests = {}
    for name in DEFAULT_FORMATS:
        for t in leg.tensors:
            m = t.survival[Setting(name, "fixed")]
            tests[name, t.name] = wash_test(m.code_flips, m.expected_flips, m.flips_variance, m.weights).p
    adjusted = false_discovery_control(list(tests.values()), method="by")
    expected = dict(zip(tests, adjusted, strict=True))
    slack = 2 * (len(tests) + PRODUCTS) * U64  # of the two, each computed in an order of its own
    found = candidates(leg)
    assert found
    for c in found:
        assert c.adjusted == pytest.approx(expected[c.format, c.tensor], rel=slack)


def test_strata_are_codes_quarters_of_binades_and_signs() -> None:
    w = np.array([1.0, 1.2, 1.3, 1.6, 1.9, -1.0, 2.0, 2.4, 2.6, 0.0])
    groups = strata(w, np.zeros(len(w)))
    same = {(i, j) for i in range(len(w)) for j in range(i) if groups[i] == groups[j]}
    assert same == {(1, 0), (7, 6)}
    assert len(set(strata(np.ones(3), np.array([0, 1, 0])))) == 2


def test_a_step_of_each_weight_is_the_shift_in_its_own_code_units() -> None:
    """With the step of one size the test is the old one, draw for draw; with several it sees a wash by hand."""
    rng = np.random.default_rng(0)
    v, shift = rng.uniform(-4, 4, 2000), rng.normal(0, 0.3, 2000)
    group, thresholds = np.zeros(2000, int), np.arange(-5, 6) + 0.5
    plain = permutation_wash_test(v, shift, group, thresholds, seed=1, permutations=99)
    step = np.full(2000, 0.25)
    same = permutation_wash_test(v, shift * step, group, thresholds, seed=1, permutations=99, step=step)
    assert same == plain
    steps = rng.choice([-1.0, 1.0], 2000) * rng.uniform(0.5, 2, 2000)
    size = 0.2 * np.ones(2000)
    inside = np.abs(v - np.rint(v)) < 0.05
    moved = np.where(inside, size, 0.0)
    assert permutation_wash_test(v, moved, group, thresholds, seed=1, permutations=99, step=steps).p == pytest.approx(
        0.02
    )


@pytest.mark.parametrize("step", [np.zeros(3), np.full(3, np.nan), np.ones(2)])
def test_a_step_that_is_none_is_refused(step: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="step must be one number a weight"):
        permutation_wash_test(np.zeros(3), np.ones(3), np.zeros(3, int), np.array([0.5]), seed=0, step=step)


def test_requantized_weights_are_no_wash(tmp_path: Path) -> None:
    """On-grid weights do not flip, as their places say; among like weights the update is at random."""
    before, after = save_pair(tmp_path, "gaussian", 0, "float32", 0.01)
    from safetensors.numpy import load_file, save_file

    from unforgotten.theory.formats.names import format_named

    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    grid = {n: round_trip(w, format_named("nf4-b64")) for n, w in old.items()}
    save_file(grid, before / "model.safetensors")
    moved = {n: (grid[n] + (new[n] - old[n])).astype(np.float32) for n in old}
    save_file(moved, after / "model.safetensors")
    ids = {row["id"] for row in audit_pair(before, after, ["nf4-b64"])["findings"]}
    assert "on-grid" in ids
    assert "wash" not in ids


def test_a_tenth_of_an_update_that_is_hidden_is_no_finding_but_has_its_p(tmp_path: Path) -> None:
    """Of the updates that flip a code of nf4, one in ten is turned around. Within WASH_RATIO: no word, but z and p."""
    from safetensors.numpy import save_file

    from unforgotten.theory.formats.names import format_named
    from unforgotten.theory.formats.reference import encode, fit_grid, to_blocks

    fmt, rng = format_named("nf4-b64"), np.random.default_rng(10)
    w = rng.normal(0, 0.02, (1024, 1024)).astype(np.float32)
    delta = rng.normal(0, 0.001, w.shape).astype(np.float32)
    grid = fit_grid(to_blocks(w, fmt), fmt)
    codes = encode(to_blocks(w, fmt), grid, fmt)
    flipped = (encode(to_blocks(w + delta, fmt), grid, fmt) != codes).reshape(w.shape)
    hidden = flipped & (rng.random(w.shape) < 0.1)
    for name, values in (("before", w), ("after", np.where(hidden, w - delta, w + delta).astype(np.float32))):
        (tmp_path / name).mkdir()
        save_file({"model.layers.0.mlp.up_proj.weight": values}, tmp_path / name / "model.safetensors")
    result = audit_pair(tmp_path / "before", tmp_path / "after", ["nf4-b64"])
    assert "wash" not in {row["id"] for row in result["findings"]}
    (total,) = [f for f in result["formats"] if f["grid"] == "fixed"]
    assert total["wash"]["z"] is not None
    assert total["wash"]["p"] is not None
    assert total["wash"]["z"] < -9
    assert total["wash"]["p"] < 1e-9

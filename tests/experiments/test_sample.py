"""A sample of a benchmark: which items, what belongs together, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.loaded_pair import open_model_pair
from unforgotten.experiments.legs.sample import TOGETHER, sampled

ITEMS = 3


def test_a_sample_keeps_the_order_and_what_belongs_together(micro_pair: Path) -> None:
    loaded = open_model_pair(micro_pair / "models/target", micro_pair / "models/unlearned")
    whole = read_benchmark(micro_pair / "corpus", loaded.shell.tokenizer, loaded.shell.context)
    bench = read_benchmark(micro_pair / "corpus", loaded.shell.tokenizer, loaded.shell.context, ITEMS)
    assert bench.settings == whole.settings
    for _, names in TOGETHER:
        before = list(zip(*(getattr(whole.probes, name) for name in names), strict=True))
        after = list(zip(*(getattr(bench.probes, name) for name in names), strict=True))
        assert len(after) == ITEMS < len(before)
        places = [before.index(item) for item in after]
        assert places == sorted(places)
        assert places != list(range(ITEMS))  # a benchmark in an order of its own is not cut to its beginning
    note = bench.notes[0]
    assert note.startswith("A sample of the benchmark was measured, drawn with seed 0: 3 of ")
    assert all(f" {called}" in note for called, _ in TOGETHER)
    assert bench.notes[1:] == whole.notes


def test_a_sample_as_large_as_the_benchmark_is_the_benchmark(micro_pair: Path) -> None:
    loaded = open_model_pair(micro_pair / "models/target", micro_pair / "models/unlearned")
    whole = read_benchmark(micro_pair / "corpus", loaded.shell.tokenizer, loaded.shell.context)
    assert sampled(whole.probes, 10_000) == (whole.probes, [])
    assert sampled(whole.probes, None) == (whole.probes, [])


def test_items_of_a_sample_are_measured_as_in_the_whole(micro_pair: Path) -> None:
    pair = micro_pair / "models/target", micro_pair / "models/unlearned"
    leg = behaviour_leg(*pair, ["int4-g64"], micro_pair / "corpus", items=ITEMS, decompose=False)
    assert {leg["metrics"]["target"][name]["n"] for name in ("M1", "M2", "M4", "forget_loss")} == {ITEMS}
    assert any("3 of " in note for note in leg["notes"])

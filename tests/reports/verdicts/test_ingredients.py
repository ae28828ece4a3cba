"""Of the ingredients of the released code each is owed what the arms say, and no arm stands beside another that differs in two."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain, combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.ingredients import (
    FACTORS,
    ingredient_rows,
    ingredient_sentences,
    ingredients,
    shares_of,
)
from unforgotten.reports.verdicts.shapley import shapley

RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
FLOAT64 = 2.0**-40
"""Of a sum of some dozen float64 numbers of about 1."""
SUBSETS = [frozenset(s) for s in chain.from_iterable(combinations("abc", size) for size in range(4))]
OUTCOMES = st.lists(st.floats(-1, 1), min_size=8, max_size=8).map(lambda v: dict(zip(SUBSETS, v, strict=True)))


@given(OUTCOMES)
def test_shares_are_means_over_orders_and_sum_to_the_whole(values: Mapping[frozenset[str], float]) -> None:
    found = shapley(values)
    for factor in "abc":
        gains = [
            values[frozenset(p[: p.index(factor) + 1])] - values[frozenset(p[: p.index(factor)])]
            for p in permutations("abc")
        ]
        assert found[factor] == pytest.approx(sum(gains) / len(gains), abs=FLOAT64)
    assert sum(found.values()) == pytest.approx(values[frozenset("abc")] - values[frozenset()], abs=FLOAT64)


def test_a_design_with_a_hole_has_no_shares() -> None:
    values = {subset: 1.0 for subset in SUBSETS if subset != frozenset("ac")}
    with pytest.raises(ValueError, match=r"every subset of a, b, c, got none for \('a', 'c'\)"):
        shapley(values)


def arm(
    method: str, storage: str, lr: float, gain: float, loss: float = 0.6
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Rows of one arm, made of those of a published one."""

    def made(row: dict[str, Any]) -> dict[str, Any]:
        value = {"gain": gain, "forget_loss": loss}.get(row["metric"], row["value"])
        return row | {"method": method, "storage": storage, "lr": lr, "value": value}

    return made


def study(folder: Path, seeds: Mapping[int, list[Callable[[dict[str, Any]], dict[str, Any]]]]) -> Evidence:
    lines = [json.loads(line) for line in rows_content(RUN).splitlines()]
    for seed, arms in seeds.items():
        place = folder / "released-code" / f"KLR-seed{seed}"
        place.mkdir(parents=True)
        rows = [row for row in lines if row["model"] != "unlearned"]
        rows += [made(row) for made in arms for row in lines if row["model"] == "unlearned"]
        (place / "rows.jsonl").write_text("".join(json.dumps(row | {"seed": seed}) + "\n" for row in rows))
        (place / "config.json").write_text("{}")
    return Evidence(folder)


def grid(gains: Callable[[str, str, float], float]) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
    names = {("NPO_KLR", 1e-5): "+slow", ("NPO_KLR", 1e-4): "+fast"}
    return [
        arm(method + names["NPO_KLR", lr], storage, lr, gains(method, storage, lr))
        for method in ("NPO_KLR", "NPO_rawlogits_KLR_rawlogits")
        for storage in ("fp32", "bf16")
        for lr in (1e-5, 1e-4)
    ]


def dead(method: str, storage: str, lr: float) -> float:
    """What only bf16 and the small learning rate together swallow: half of the update, and a quarter more with raw logits."""
    return 1.0 if storage == "fp32" or lr == 1e-4 else 0.5 if method == "NPO_KLR" else 0.25


def test_what_two_ingredients_swallow_together_is_owed_to_both(tmp_path: Path) -> None:
    (told,) = shares_of(ingredients(study(tmp_path, {0: grid(dead), 1: grid(dead)})))
    assert (told.best.value, told.worst.value) == (1.0, 0.25)
    wanted = {"bf16": 0.25 + 0.25 / 3, "lr": 0.25 + 0.25 / 3, "raw": 0.25 / 3}
    assert set(told.shares) == set(FACTORS)
    for name, value in wanted.items():
        assert told.shares[name].value == pytest.approx(value, abs=FLOAT64)
        assert told.shares[name].seeds == 2


def test_shares_need_every_arm_on_a_seed(tmp_path: Path) -> None:
    assert shares_of(ingredients(study(tmp_path, {0: grid(dead)[:-1]}))) == []
    part = study(tmp_path / "part", {0: grid(dead), 1: grid(dead)[:-1]})
    (told,) = shares_of(ingredients(part))
    assert told.best.seeds == 1


def test_a_mask_stands_beside_the_same_arm_without_one(tmp_path: Path) -> None:
    arms = [*grid(dead), arm("NPO_KLR_SURE+fast", "bf16", 1e-4, 0.8), arm("NPO_KLR_SURE+slow", "fp32", 1e-5, 0.9)]
    sentences = ingredient_sentences(ingredients(study(tmp_path, {0: arms})))
    assert any("NPO_KLR_SURE, bf16, lr 0.0001: gain 0.80, and 1.00 without a mask" in told for told in sentences)
    assert any("NPO_KLR_SURE, fp32, lr 1e-05: gain 0.90, and 1.00 without a mask" in told for told in sentences)


def test_what_forgot_nothing_has_nothing_that_comes_back(tmp_path: Path) -> None:
    target = next(
        row["value"]
        for row in map(json.loads, rows_content(RUN).splitlines())
        if (row["model"], row["metric"], row["format"]) == ("target", "forget_loss", "none")
    )
    stuck = arm("NPO_KLR+slow", "bf16", 1e-5, 0.5, target + 0.01)
    (one,) = ingredients(study(tmp_path, {0: [stuck]}))
    assert one.back is None
    assert ingredient_rows([one])[0][-3] == "–"
    assert "NPO_KLR in bf16 at lr 1e-05" in ingredient_sentences([one])[-1]


def test_without_the_study_nothing_is_said(tmp_path: Path) -> None:
    assert ingredient_sentences(ingredients(Evidence(tmp_path))) == []


def test_what_two_ingredients_do_alone_and_together_is_said(tmp_path: Path) -> None:
    arms = [*grid(dead), arm("NPO_KLR_SURE+fast", "bf16", 1e-4, 0.9), arm("NPO_KLR_SURE+slow", "bf16", 1e-5, 0.45)]
    sentences = ingredient_sentences(ingredients(study(tmp_path, {0: arms, 1: arms})))
    alone = "1.00 [1.00, 1.00] in bf16 at lr 0.0001, 1.00 [1.00, 1.00] in fp32 at lr 1e-05"
    assert f"{alone}, 0.50 [0.50, 0.50] in bf16 at lr 1e-05, and 0.25 [0.25, 0.25] there with losses" in sentences[0]
    (rate,) = (told for told in sentences if told.startswith("What SURE adds"))
    assert "0.50 [0.50, 0.50] without its mask and 0.45 [0.45, 0.45] with it" in rate
    assert "1.00 [1.00, 1.00] without and 0.90 [0.90, 0.90] with" in rate

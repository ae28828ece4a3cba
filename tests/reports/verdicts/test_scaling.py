"""What the page says of bits and blocks is what each cell of the runs says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.scaling import arm_sentences, level_sentences, scaled, scaling_sentences

RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
FLOAT64 = 2.0**-40
"""Of a quotient of differences in float64."""


def study(folder: Path, change: dict[str, float], name: str = "bits-and-blocks/npo-seed0") -> Evidence:
    """The published arm, its three formats with the gain, the forget loss and the effect of cells that are given."""
    rows = [json.loads(line) for line in rows_content(RUN).splitlines()]
    place = folder / name
    place.mkdir(parents=True)
    changed = [
        row | ({"value": change[key]} if (key := f"{row['model']} {row['metric']} {row['format']}") in change else {})
        for row in rows
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    (place / "config.json").write_text("{}")
    return Evidence(folder)


LOSSES = {"target forget_loss none": 0.1, "unlearned forget_loss none": 0.6}


def test_a_share_is_that_of_the_added_loss(tmp_path: Path) -> None:
    given = {"unlearned gain int4-g64": 0.25, "unlearned gating_effect int4-g64": 0.2}
    found = {one.format: one for one in scaled(study(tmp_path, LOSSES | given))}
    assert list(found) == ["int4-g64", "fp4-b64", "nf4-b64"]
    one = found["int4-g64"]
    assert one.gain.value == 0.25
    assert one.back is not None
    assert one.back.value == pytest.approx(0.4, rel=FLOAT64)
    bits, blocks = scaling_sentences(list(found.values()))
    assert bits.endswith("cells take back: int4-g64 0.25, 40 %.")
    assert "over blocks" in blocks
    assert "int4" not in blocks


def test_what_forgot_nothing_has_gains_alone(tmp_path: Path) -> None:
    given = {"unlearned forget_loss none": 0.11, "unlearned gain int4-g64": 0.25}
    found = scaled(study(tmp_path, LOSSES | given))
    assert all(one.back is None for one in found)
    assert scaling_sentences(found)[0].endswith("take back: int4-g64 0.25.")


def test_a_sentence_of_an_arm_has_its_formats_and_the_means_of_its_seeds(tmp_path: Path) -> None:
    for seed, gain in ((0, 0.25), (1, 0.75)):
        given = {"unlearned gain int4-g64": gain, "unlearned gating_effect int4-g64": 0.2 + 0.1 * seed}
        evidence = study(tmp_path, LOSSES | given, f"dead-zone/bf16-seed{seed}")
    (sentence,) = arm_sentences(scaled(evidence, "dead-zone"))
    assert sentence.startswith("NPO_GDR, bf16, means of 2 seeds: int4-g64 0.50 and 50 %; fp4-b64 ")
    assert arm_sentences(scaled(evidence)) == []


def test_levels_are_kept_apart_with_a_method_s_formats_beside_each_other(tmp_path: Path) -> None:
    for level, gain in (("llama", 0.25), ("gpt-neox", 0.75)):
        given = {"unlearned gain int4-g64": gain, "unlearned gating_effect int4-g64": 0.2}
        evidence = study(tmp_path, LOSSES | given, f"held-out/{level}-seed5")
    found = scaled(evidence, "held-out")
    assert [one.level for one in found] == 3 * ["gpt-neox"] + 3 * ["llama"]
    neox, llama = level_sentences(found)
    assert neox.startswith("gpt-neox, one seed, bf16 at int4-g64, fp4-b64, nf4-b64: NPO_GDR 0.75 and 40 %, ")
    assert llama.startswith("llama, one seed, bf16 at int4-g64, fp4-b64, nf4-b64: NPO_GDR 0.25 and 40 %, ")
    masters = [one._replace(storage="fp32") for one in found]
    gains = sorted(one.gain.value for one in masters)
    (told,) = level_sentences(masters)
    assert f"in 2 architectures, the gain is {gains[0]:.2f} to {gains[-1]:.2f}." in told


def test_without_the_study_nothing_is_said(tmp_path: Path) -> None:
    assert scaling_sentences(scaled(Evidence(tmp_path))) == []

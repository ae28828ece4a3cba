"""Tables of a study's runs hold what each cell of the runs says, with the interval of its seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.real_bases import real_arms, real_tables
from unforgotten.reports.verdicts.scaling import arm_table, format_table, over_arms, scaled

RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
FLOAT64 = 2.0**-40
"""Of a quotient of differences in float64."""
T_OF_TWO = 12.706
"""Student's t at 97.5 % with one degree of freedom."""


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


def cells_of(table: str) -> list[list[str]]:
    """Cells of the lines of a table, its head first."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def test_a_share_is_that_of_the_added_loss(tmp_path: Path) -> None:
    given = {"unlearned gain int4-g64": 0.25, "unlearned gating_effect int4-g64": 0.2}
    found = {one.format: one for one in scaled(study(tmp_path, LOSSES | given), "bits-and-blocks")}
    assert list(found) == ["int4-g64", "fp4-b64", "nf4-b64"]
    one = found["int4-g64"]
    assert one.gain.value == 0.25
    assert one.back is not None
    assert one.back.value == pytest.approx(0.4, rel=FLOAT64)
    head, first, *others = cells_of(format_table(list(found.values())))
    assert head == ["format", "NPO_GDR, bf16", "seeds"]
    assert first == ["int4-g64", "0.25 (one seed); 40 % (one seed)", "1"]
    assert [line[0] for line in others] == ["fp4-b64", "nf4-b64"]


def test_what_forgot_nothing_has_gains_alone(tmp_path: Path) -> None:
    given = {"unlearned forget_loss none": 0.11, "unlearned gain int4-g64": 0.25}
    found = scaled(study(tmp_path, LOSSES | given), "bits-and-blocks")
    assert all(one.back is None for one in found)
    assert cells_of(format_table(found))[1][1] == "0.25 (one seed)"


def test_a_cell_has_the_mean_of_its_seeds_and_their_interval(tmp_path: Path) -> None:
    for seed, gain in ((0, 0.25), (1, 0.75)):
        given = {"unlearned gain int4-g64": gain, "unlearned gating_effect int4-g64": 0.2 + 0.1 * seed}
        evidence = study(tmp_path, LOSSES | given, f"dead-zone/bf16-seed{seed}")
    first = cells_of(format_table(scaled(evidence, "dead-zone")))[1]
    half = 0.25 * T_OF_TWO
    assert first == ["int4-g64", f"0.50 [{0.5 - half:.2f}, {0.5 + half:.2f}]; 50 % [-77 %, 177 %]", "2"]
    assert scaled(evidence, "bits-and-blocks") == []


def test_levels_are_kept_apart_with_a_method_s_formats_beside_each_other(tmp_path: Path) -> None:
    for level, gain in (("llama", 0.25), ("gpt-neox", 0.75)):
        given = {"unlearned gain int4-g64": gain, "unlearned gating_effect int4-g64": 0.2}
        evidence = study(tmp_path, LOSSES | given, f"held-out/{level}-seed5")
    found = scaled(evidence, "held-out")
    assert [one.level for one in found] == 3 * ["gpt-neox"] + 3 * ["llama"]
    head, neox, llama = cells_of(arm_table(found))
    assert head == ["model", "method", "parameters", "int4-g64", "fp4-b64", "nf4-b64", "seeds"]
    assert neox[:4] == ["gpt-neox", "NPO_GDR", "bf16", "0.75 (one seed); 40 % (one seed)"]
    assert llama[:4] == ["llama", "NPO_GDR", "bf16", "0.25 (one seed); 40 % (one seed)"]


def test_a_format_that_one_seed_lacks_is_of_the_others(tmp_path: Path) -> None:
    for seed in (0, 1):
        study(tmp_path, LOSSES | {"unlearned gain int4-g64": 0.25}, f"dead-zone/bf16-seed{seed}")
    rows = tmp_path / "dead-zone/bf16-seed0/rows.jsonl"
    kept = [line for line in rows.read_text().splitlines() if json.loads(line)["format"] != "fp4-b64"]
    rows.write_text("\n".join(kept) + "\n")
    found = {one.format: one.gain.seeds for one in scaled(Evidence(tmp_path), "dead-zone")}
    assert found == {"int4-g64": 2, "nf4-b64": 2, "fp4-b64": 1}
    assert cells_of(arm_table(scaled(Evidence(tmp_path), "dead-zone")))[1][-1] == "1 to 2"
    assert len(Evidence(tmp_path).run("dead-zone/bf16-seed0").formats) == 2


def test_runs_of_a_real_base_are_taken_together_and_smaller_ones_left_out(tmp_path: Path) -> None:
    gains = {"base-seed0": 0.25, "real-bases/base-seed1": 0.75, "tiny-seed0": 1.0, "base-smoke-seed0": 1.0}
    for name, gain in gains.items():
        study(tmp_path, LOSSES | {"unlearned gain int4-g64": gain}, name)
    evidence = Evidence(tmp_path)
    ((level, method, storage),) = real_arms(evidence)
    assert (level, method, storage) == ("base", "NPO_GDR", "bf16")
    (first, *_) = over_arms(real_arms(evidence))
    assert (first.gain.value, first.gain.seeds) == (0.5, 2)
    (told,) = real_tables(evidence)
    assert cells_of(told.text)[1][0] == "base"
    assert real_tables(Evidence(tmp_path / "none")) == ()

"""Each line of the table of the README is what the rows of its runs say, and a table without its runs or its place is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.at_a_glance import BEGIN, END, GROUPS, Line, at_a_glance, glance_table, renewed, seen
from unforgotten.reports.verdicts.evidence import Evidence

RUN = Path(__file__).parents[1] / "small_runs/one-arm-seed0"
PUBLISHED = Path(__file__).parents[3] / "reports/published"
FLOAT64 = 2.0**-40
"""Of a quotient of differences in float64."""
LINE = Line("nothing", "some/bf16", "NPO_GDR")
BEFORE, AFTER = 0.1, 0.6
ALPHA = 16.0


def runs(folder: Path, effects: list[float], name: str = "bf16", after: float = AFTER) -> Evidence:
    """Runs of a seed each, in which the cells take back what is given, in nats; M1 and M4 are the seed's."""
    rows = [json.loads(line) for line in rows_content(RUN).splitlines()]
    for seed, effect in enumerate(effects):
        place = folder / "some" / f"{name}-seed{seed}"
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        given = {"gating_effect": effect, "gain": seed / 2, "M1": 10.0 * seed, "M4": 50.0 + 10 * seed}
        unlearned = given | {"forget_loss": after}
        target = {"forget_loss": BEFORE, "M1": 100.0, "M4": 50.0}
        quantized = {"target": {"M1": 80.0}, "unlearned": given | {"M1": 20.0 * seed, "forget_loss": after}}
        changed = [
            row
            | {
                "seed": seed,
                "alpha": ALPHA if row["model"] == "unlearned" else None,
                "value": (quantized if row["format"] == LINE.format else {"unlearned": unlearned, "target": target})
                .get(row["model"], {})
                .get(row["metric"], row["value"]),
            }
            for row in rows
        ]
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    return Evidence(folder)


def test_a_line_is_the_mean_of_its_seeds(tmp_path: Path) -> None:
    one = seen(runs(tmp_path, [0.1, 0.3]), LINE)
    assert one.back is not None
    assert one.back.value == pytest.approx(0.4, rel=FLOAT64)
    assert (one.gain.value, one.gain.seeds) == (0.25, 2)
    assert one.memory == (100.0, 5.0)
    assert one.quantized == (80.0, 10.0)
    assert (one.removed.value, one.removed.seeds) == (70.0, 2)
    assert (one.utility.value, one.utility.seeds) == (5.0, 2)
    assert one.alpha == (ALPHA,)


def test_what_forgot_nothing_takes_nothing_back(tmp_path: Path) -> None:
    assert seen(runs(tmp_path, [0.1], after=BEFORE + 0.09), LINE).back is None


def test_runs_of_another_level_method_or_depth_do_not_count(tmp_path: Path) -> None:
    runs(tmp_path, [0.1])
    evidence = runs(tmp_path, [0.2, 0.2], name="bf16-other")
    assert seen(evidence, LINE).gain.seeds == 1
    for other in (LINE._replace(method="GA"), LINE._replace(depth="1.5"), LINE._replace(runs="some/none")):
        with pytest.raises(ValueError, match="must be published runs with"):
            seen(evidence, other)
    assert seen(evidence, LINE._replace(depth="0.6")).gain.seeds == 1


def test_further_seeds_may_stand_in_another_folder(tmp_path: Path) -> None:
    runs(tmp_path, [0.1])
    evidence = runs(tmp_path, [0.1, 0.3], name="further")
    one = seen(evidence, LINE._replace(also="some/further"))
    assert one.gain.seeds == 2
    assert one.back is not None
    assert one.back.value > 0.2


def test_the_table_has_a_line_for_each_and_goes_between_its_marks() -> None:
    evidence = Evidence(PUBLISHED)
    lines = glance_table(evidence).splitlines()
    assert len(lines) == 2 + len(GROUPS) + sum(map(len, GROUPS.values()))
    text = f"before\n{BEGIN}old\n{END}after\n"
    told = at_a_glance(evidence, "reports/published/")
    once = renewed(text, evidence)
    assert once == f"before\n{BEGIN}\n{told}\n\n{END}after\n"
    assert glance_table(evidence) in once
    assert "reports/published/phase-diagram/phase.svg" in once
    assert renewed(once, evidence) == once
    with pytest.raises(ValueError, match="text must hold"):
        renewed("no marks", evidence)

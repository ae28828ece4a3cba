"""What the page says of architectures and of inputs quantized at run time follows from the rows of each architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from unforgotten.records.packed_rows import rows_content
from unforgotten.reports.verdicts.architectures import architecture_claim, architectures, gain_sentences
from unforgotten.reports.verdicts.cures import COARSE
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.inputs import INPUTS, STUDY, inputs_claim

RUN = Path(__file__).parents[1] / "small_runs/two-storages-seed0"
FLOAT64 = 2.0**-40
"""Of a quotient of differences in float64."""
TARGET, AFTER = 0.1, 0.6


class Seen(NamedTuple):
    """Gains of fp32 and bf16 at 4 bits, and the shares that come back with quantized inputs and at 4 bits after bf16."""

    fp32: float = 1.0
    bf16: float = 0.5
    dynamic: float | None = 0.0
    back: float = 0.5


def study(folder: Path, seen: Mapping[str, Seen]) -> Evidence:
    lines = [json.loads(line) for line in rows_content(RUN).splitlines()]
    for name, one in seen.items():
        rows = []
        for row in lines:
            storage = {"bf16-sr": "bf16"}.get(row["storage"], row["storage"])
            value = row["value"]
            if row["metric"] == "forget_loss":
                value = AFTER if row["model"] == "unlearned" else TARGET
                if row["model"] == "unlearned" and storage == "bf16" and row["format"] in COARSE:
                    value = AFTER - one.back * (AFTER - TARGET)
            elif row["metric"] == "gain":
                value = one.fp32 if storage == "fp32" else one.bf16
            rows.append(row | {"storage": storage, "value": value})
            loss = row["model"] == "unlearned" and row["metric"] == "forget_loss" and row["format"] == "none"
            if loss and one.dynamic is not None:
                back = AFTER - one.dynamic * (AFTER - TARGET)
                rows.append(rows[-1] | {"format": "dynamic:int8-row", "value": back})
        place = folder / "architectures" / name
        place.mkdir(parents=True)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "config.json").write_text("{}")
    return Evidence(folder)


def test_a_share_that_comes_back_is_that_of_the_added_loss(tmp_path: Path) -> None:
    found = architectures(study(tmp_path, {"qwen-seed0": Seen(dynamic=0.2)}))
    assert [(one.name, one.storage) for one in found] == [("qwen", "fp32"), ("qwen", "bf16")]
    for one in found:
        assert one.dynamic is not None
        assert one.dynamic.value == pytest.approx(0.2, abs=FLOAT64)
    assert [one.whole for one in found] == [True, False]


def test_gains_of_all_architectures_stand_in_one_sentence(tmp_path: Path) -> None:
    found = architectures(study(tmp_path, {"moe-seed0": Seen(bf16=0.25), "qwen-seed0": Seen(fp32=0.75)}))
    (told,) = gain_sentences(found)
    assert "bf16 parameters: moe 0.25 (one seed), qwen 0.50 (one seed);" in told
    assert "fp32 masters: moe 1.00 (one seed), qwen 0.75 (one seed) (" in told
    assert gain_sentences([one for one in found if one.storage == "fp32"]) == []


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ({"moe-seed0": Seen(), "qwen-seed0": Seen()}, "in part"),
        ({"moe-seed0": Seen(), "moe-seed1": Seen()}, "confirmed"),
        ({"moe-seed0": Seen(), "moe-seed1": Seen(back=-0.4)}, "in part"),
        (
            {"moe-seed0": Seen(), "moe-seed1": Seen(), "qwen-seed0": Seen(bf16=1.0), "qwen-seed1": Seen(bf16=1.0)},
            "in part",
        ),
        ({"moe-seed0": Seen(fp32=0.5)}, "refuted"),
    ],
)
def test_the_word_follows_from_who_passes_the_update(seen: Mapping[str, Seen], word: str, tmp_path: Path) -> None:
    across = architecture_claim(study(tmp_path, seen))
    assert across.word == word


def test_inputs_quantized_at_run_time_bring_back_what_the_rows_say(tmp_path: Path) -> None:
    two = {"moe-seed0": Seen(dynamic=0.02), "moe-seed1": Seen(dynamic=0.04)}
    nothing = inputs_claim(study(tmp_path / "nothing", two))
    assert nothing.word == "in part"
    assert "nothing comes back" in nothing.scope
    some = inputs_claim(study(tmp_path / "some", {"moe-seed0": Seen(dynamic=0.4), "moe-seed1": Seen(dynamic=0.4)}))
    assert some.word == "in part"
    assert "some comes back" in some.scope
    assert "40 % to 40 % came back" in some.found[0]
    none = inputs_claim(study(tmp_path / "none", {"moe-seed0": Seen(dynamic=None)}))
    assert none.word == "not measured"


@pytest.mark.parametrize(
    ("shares", "word"), [((0.9, 0.8, 0.7), "confirmed"), ((0.9, 0.8, -0.1), "in part"), ((0.9, -0.2, -0.1), "refuted")]
)
def test_beside_four_bits_it_persists_where_it_comes_back_with_quantized_inputs(
    shares: Sequence[float], word: str, tmp_path: Path
) -> None:
    for seed in (0, 1):
        rows = []
        for line in rows_content(RUN).splitlines():
            row = json.loads(line)
            row["storage"] = {"bf16-sr": "bf16"}.get(row["storage"], row["storage"])
            loss = row["metric"] == "forget_loss" and row["format"] == "none"
            rows.append(
                row | {"seed": seed} | ({"value": AFTER if row["model"] == "unlearned" else TARGET} if loss else {})
            )
            if loss and row["model"] == "unlearned":
                backs = (
                    dict(zip(INPUTS, shares, strict=True)) if row["storage"] == "bf16" else dict.fromkeys(INPUTS, 0.0)
                )
                rows += [
                    rows[-1] | {"format": fmt, "value": AFTER - back * (AFTER - TARGET)} for fmt, back in backs.items()
                ]
        place = tmp_path / STUDY / f"npo-seed{seed}"
        place.mkdir(parents=True)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "config.json").write_text("{}")
    claim = inputs_claim(Evidence(tmp_path))
    assert claim.word == word
    assert "2 seeds" in claim.scope
    (told,) = (text for text in claim.found if "bf16 parameters" in text)
    assert f"of 8 bits {100 * shares[1]:.0f} %" in told


def test_without_the_study_only_llamas_are_measured(tmp_path: Path) -> None:
    across, dynamic = architecture_claim(Evidence(tmp_path)), inputs_claim(Evidence(tmp_path))
    assert (across.word, dynamic.word) == ("in part", "not measured")
    assert "GPT-NeoX, Qwen and mixtures of experts are not measured" in across.found[0]

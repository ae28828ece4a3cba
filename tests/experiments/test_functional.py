"""The functional gain of an audit: its sums by hand, its sham, its sentences, and what the answer shows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.audit.findings.functional import functional_findings, functional_of
from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.outputs.html import render
from unforgotten.audit.outputs.merged import merged_findings
from unforgotten.audit.run import audit_pair
from unforgotten.audit.verdict.legs import FunctionalLeg, FunctionalRow
from unforgotten.experiments.legs.functional import LONGEST, MOST_TOKENS, functional_leg, gradient, sample
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.experiments.models.states import LazyState

FORMATS = ("int4-g64", "gguf:Q4_K_M")
DOCUMENTS = [[1, 5, 9, 12, 7, 30], [1, 8, 8, 3], [1, 30, 31, 32, 33, 40, 41]]
STEP, THIRD_ORDER = 1e-2, 0.02
"""Length of a step either way along the gradient, and the share of a central difference that its third order may be."""
SHAM_SPREAD = 0.1
"""Of the gain of a random update of some ten thousand weights, by T6 with mean 1: several standard deviations."""
FLOAT32 = 2.0**-20
"""Of a sum of products in float32, beside one in another order."""


@pytest.fixture(scope="module")
def folders(micro_pair: Path) -> tuple[Path, Path]:
    return micro_pair / "models/target", micro_pair / "models/unlearned"


@pytest.fixture(scope="module")
def pair(folders: tuple[Path, Path]) -> Pair:
    return open_model_pair(*folders)


@pytest.fixture(scope="module")
def found(pair: Pair) -> FunctionalLeg:
    measured = functional_leg(pair, FORMATS, DOCUMENTS)
    assert measured is not None
    return measured


def test_the_gradient_is_that_of_the_forget_loss(pair: Pair, tmp_path: Path) -> None:
    name = pair.shell.names[0]
    slopes = gradient(pair, [name], DOCUMENTS, tmp_path)
    step = slopes[name] * (STEP / slopes[name].norm())
    ends = []
    for sign in (1, -1):

        def moved(key: str, sign: int = sign) -> Any:
            return pair.unlearned[key] + sign * step if key == name else pair.unlearned[key]

        ends.append(mean_loss(pair.shell.with_state(LazyState(pair.unlearned, moved)), DOCUMENTS, 1))
    assert ends[0] - ends[1] == pytest.approx(2 * STEP * float(slopes[name].norm()), rel=THIRD_ORDER)
    assert all(p.grad is None for p in pair.shell.model.parameters())


def test_sums_are_those_of_flat_vectors(pair: Pair, found: FunctionalLeg, tmp_path: Path) -> None:
    for row in found["formats"]:
        names = pair.shell.touched(row["format"])
        slopes = gradient(pair, names, DOCUMENTS, tmp_path)
        q, q_new = (pair.shell.quantized(s, row["format"]) for s in (pair.target, pair.unlearned))
        flat = [
            torch.cat([state(n).double().ravel() for n in names])
            for state in (
                slopes.__getitem__,
                lambda n: pair.unlearned[n] - pair.target[n],
                lambda n, q=q, q_new=q_new: q_new[n] - q[n],
            )
        ]
        g, delta, kept = flat
        assert row["weights"] == len(g)
        assert row["gain"] == pytest.approx(float(kept @ delta / (delta @ delta)), rel=FLOAT32)
        assert row["first_order"] == pytest.approx(float(g @ delta), rel=FLOAT32)
        assert row["functional_gain"] == pytest.approx(float(g @ kept / (g @ delta)), rel=FLOAT32)
    assert [row["format"] for row in found["formats"]] == list(FORMATS)
    four, mixed = found["formats"]
    assert mixed["weights"] > four["weights"]  # the embedding


def test_a_random_update_is_told_from_the_own_one(pair: Pair, found: FunctionalLeg) -> None:
    for row in found["formats"]:
        assert row["sham_gain"] == pytest.approx(1, abs=SHAM_SPREAD)  # it is larger than the cells: T6
        assert row["sham_shift"] is not None
        assert row["sham_shift"] > 0
    assert functional_leg(pair, FORMATS, DOCUMENTS) == found  # seeded


def test_texts_are_sampled_and_cut() -> None:
    long = [[1] * (2 * LONGEST) for _ in range(2 * MOST_TOKENS // LONGEST)]
    chosen = sample(long)
    assert sum(map(len, chosen)) == MOST_TOKENS
    assert {len(text) for text in chosen} == {LONGEST}
    assert sample([[1], [2, 3], []]) == [[2, 3]]


def row_of(gamma: float | None, *, shift: float = 0.1, effect: float = 1.0) -> FunctionalRow:
    return FunctionalRow(
        format="int4-g64",
        weights=1,
        first_order=effect,
        gain=0.9,
        functional_gain=gamma,
        sham_gain=1.0,
        sham_shift=shift,
    )


@pytest.mark.parametrize(
    ("row", "id", "words"),
    [
        (row_of(0.4), "comes-back", "part comes back"),
        (row_of(1.6), "forgets-further", "forgets further"),
        (row_of(0.95), "functional-gain", "no further from 1 than the 0.10"),
        (row_of(0.4, effect=-1.0), "functional-gain", "does not raise the forget loss"),
    ],
)
def test_a_sentence_says_the_sign_where_chance_does_not(row: FunctionalRow, id: str, words: str) -> None:
    leg = FunctionalLeg(texts=1, of=1, tokens=1, shams=3, formats=[row])
    (said,) = functional_findings(leg)
    assert (said["id"], said["effect"]) == (id, row["functional_gain"])
    assert words in said["sentence"]
    assert said["severity"] == ("warning" if id == "comes-back" else "note")


def test_one_sentence_for_several_formats_says_no_more_than_each() -> None:
    """A format within chance and one of an update that does not raise the loss tell no sign, together as alone."""
    rows = [row_of(0.95), {**row_of(0.4, effect=-1.0), "format": "nf4-b64"}, {**row_of(1.6), "format": "q4_0"}]
    leg = FunctionalLeg(texts=1, of=1, tokens=1, shams=3, formats=rows)  # type: ignore[typeddict-item]  # mypy of {**row}
    said = [one.sentence for one in merged_findings(functional_findings(leg))]
    assert len(said) == 2
    (unclear,) = [text for text in said if text.startswith("int4-g64, nf4-b64: ")]
    assert "neither that the forget loss comes back nor that it rises further" in unclear


def test_without_an_update_nothing_is_said() -> None:
    leg = FunctionalLeg(texts=1, of=1, tokens=1, shams=3, formats=[row_of(None)])
    assert functional_findings(leg) == functional_findings(None) == []


def test_terminal_and_page_show_it_beside_the_gain(folders: tuple[Path, Path], micro_pair: Path) -> None:
    texts = micro_pair / "corpus/privleak/forget.json"
    rows: list[Any] = []
    result = audit_pair(
        *folders, ["int4-g64"], output=lambda: output_leg(*folders, ["int4-g64"], texts), take_rows=rows.extend
    )
    leg = functional_of(result["output"], result["behaviour"])
    assert leg is not None
    (row,) = leg["formats"]
    shown = answer(result)
    assert shown.functional
    assert shown.rows[0].functional == f"{row['functional_gain']:.2f} ± {row['sham_shift']:.2f}"
    assert shown.rows[0].functional in render(result, rows)
    ids = {one["id"] for one in result["findings"]}
    assert len(ids & {"comes-back", "forgets-further", "functional-gain"}) == 1
    assert row["gain"] == pytest.approx(result["formats"][0]["gain"], rel=FLOAT32)  # the same sums by another path

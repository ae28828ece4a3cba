"""A broken model: found by M4 or by the retain loss, beyond chance; and no word praises it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from unforgotten.audit import AuditResult, audit_pair, print_summary
from unforgotten.audit.findings.retain import retain_findings
from unforgotten.audit.outputs.html import render
from unforgotten.audit.outputs.junit import render_junit
from unforgotten.audit.outputs.model_card import render_model_card
from unforgotten.audit.outputs.sarif import render_sarif
from unforgotten.audit.verdict.gate import gate, read_words
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Mean, RecoveryRow
from unforgotten.audit.verdict.rule import decide

Numbers = dict[str, float]
TARGET: Numbers = {"M1": 100.0, "M2": 100.0, "M4": 100.0, "retain_loss": 0.1, "auc": 0.99}
KEPT: Numbers = {"M1": 20.0, "M2": 15.0, "M4": 96.0, "retain_loss": 0.2, "auc": 0.52}
DESTROYED: Numbers = {"M1": 0.0, "M2": 0.0, "M4": 17.0, "retain_loss": 53.0, "auc": 0.5}


def means(numbers: Numbers, stderr: float = 0.02) -> dict[str, Mean]:
    return {name: Mean(value=x, stderr=stderr * abs(x), n=32) for name, x in numbers.items()}


def row(metric: str, before: Numbers, after: Numbers) -> RecoveryRow:
    return RecoveryRow(
        metric=metric,
        n=32,
        target=before[metric],
        unlearned=after[metric],
        quantized_target=before[metric],
        quantized_unlearned=after[metric],
        removed=True,
        rho=0.0,
        low=-0.02,
        high=0.02,
        change=[0.0, 0.0],
        p_undone=1.0,
        p_survives=1e-6,
        effective=30.0,
    )


def leg(after: Numbers, quantized: Numbers | None = None, **retrained: Numbers) -> BehaviourLeg:
    q = after if quantized is None else quantized
    formats = [
        BehaviourFormat(
            format=name,
            metrics={"Q(target)": means(TARGET), "Q(unlearned)": means(q)},
            recoveries=[row("M1", TARGET, after), row("M2", TARGET, after)],
            effects=[],
        )
        for name in ("int4-g64", "int8-row")
    ]
    metrics = {"target": means(TARGET), "unlearned": means(after), **{k: means(v) for k, v in retrained.items()}}
    return BehaviourLeg(benchmark="b", metrics=metrics, formats=formats, leaks=[], notes=[])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditResult]:
    import numpy as np
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("retain")
    w = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    for name, tensor in (("t", w), ("u", (w + 0.05).astype(np.float32))):
        (root / name).mkdir()
        save_file({"layers.0.weight": tensor}, root / name / "model.safetensors")
    legs = {"destroyed": leg(DESTROYED), "kept": leg(KEPT)}
    formats = ["int4-g64", "int8-row"]
    return {k: audit_pair(root / "t", root / "u", formats, behaviour=lambda b=b: b) for k, b in legs.items()}  # type: ignore[misc]


def printed(result: AuditResult, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_summary(result, None, console)
    return console.export_text()


def test_a_destroyed_model_is_an_error_and_survives_nothing() -> None:
    (found,) = retain_findings(leg(DESTROYED))
    assert (found["id"], found["severity"], found["format"]) == ("retain-lost", "error", None)
    assert "M4 100 → 17" in found["sentence"]
    assert "retain loss 0.1 → 53" in found["sentence"]
    decision = decide("passes", None, leg(DESTROYED))
    assert (decision["overall"], decision["legs"]["behaviour"]) == ("undecided", "undecided")
    assert decision["reasons"][0] == found["sentence"]


def test_a_model_that_kept_what_it_should_is_none() -> None:
    assert retain_findings(leg(KEPT)) == []
    assert retain_findings(None) == []
    assert decide("passes", None, leg(KEPT))["overall"] == "survives"


@pytest.mark.parametrize(
    ("change", "broken"),
    [({"M4": 17.0}, True), ({"M4": 51.0}, False), ({"retain_loss": 0.2 + 2.0}, False), ({"retain_loss": 53.0}, True)],
)
def test_either_sign_is_enough_and_a_loss_of_less_is_none(change: Numbers, broken: bool) -> None:
    assert bool(retain_findings(leg({**KEPT, **change}))) == broken


def test_what_chance_could_do_is_no_finding() -> None:
    noisy = leg({**KEPT, "M4": 40.0})
    for side in noisy["metrics"].values():
        side["M4"]["stderr"] = 40.0
    assert retain_findings(noisy) == []


def test_a_format_that_breaks_the_model_is_named() -> None:
    found = retain_findings(leg(KEPT, DESTROYED))
    assert [row["format"] for row in found] == ["int4-g64", "int8-row"]
    assert decide("passes", None, leg(KEPT, DESTROYED))["overall"] == "undecided"


def test_every_output_says_so_and_none_says_survives(results: dict[str, AuditResult]) -> None:
    result = results["destroyed"]
    page, card, text = render(result, []), render_model_card(result), printed(result)
    for output in (page, card, text):
        assert "lost what it should keep" in output
        assert "100 → 17" in output
        assert "AUC 0.99 → 0.5" in output
        assert "M3 not measured" in output
    assert "survives" not in text.replace("the update that survives", "")
    assert 'class="word good"' not in page
    assert '"level": "error"' in render_sarif(result)
    assert 'type="retain-lost"' in render_junit(result)
    assert gate(result, read_words("retain-lost", ("benchmark",))).code == 1


def test_a_kept_model_shows_its_metrics_too(results: dict[str, AuditResult]) -> None:
    result = results["kept"]
    assert "M4 100 → 96" in render_model_card(result)
    assert "M4 100 → 96" in printed(result)
    assert 'class="word good"' in render(result, [])
    assert gate(result, read_words("retain-lost,undone,undecided", ("benchmark",))).code == 0


@pytest.mark.parametrize("value", [None, float("nan")])
def test_m3_without_a_value_is_undefined_with_its_reason(value: float | None, results: dict[str, AuditResult]) -> None:
    retrained: Any = leg(KEPT, retrained={"auc": 0.003})
    retrained["metrics"]["unlearned"]["M3"] = {"value": value, "stderr": None, "n": 32}
    changed: Any = {**results["kept"], "behaviour": retrained}
    for output in (printed(changed, 200), render_model_card(changed)):
        assert "M3 undefined (AUC of the retrained model is 0.00), AUC differs from it by +0.52" in output
        assert "nan" not in output
        assert "M3 0" not in output
    assert json.loads(json.dumps(results["kept"], allow_nan=False))

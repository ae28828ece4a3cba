"""`unforgotten audit --dry-run` and `--device`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unforgotten.audit.options import Asked, read_options

pytest.importorskip("torch", reason="plans and models need unforgotten[experiments]")

from unforgotten.experiments.plan.audit import AuditAsked, as_object, lines, make_audit_plan
from unforgotten.experiments.plan.rates import Rates

ROUNDED = 1
"""Byte, of two sizes each rounded to half of one."""


def plan_of(root: Path, **changed: Any) -> Any:
    asked: dict[str, Any] = {
        "pair": (root / "models/target", root / "models/unlearned"),
        "formats": ("int4-g64", "nf4-b64"),
        "texts": root / "corpus/privleak/forget.json",
        "benchmark": root / "corpus",
        "retrained": None,
        "items": None,
        "device": "cpu",
        "dtype": "float32",
        "decompose": True,
    }
    return make_audit_plan(AuditAsked(**{**asked, **changed}), Rates(1e9, 1e8))


def test_it_counts_the_models_and_tokens_that_are_measured(micro_pair: Path) -> None:
    plan = plan_of(micro_pair)
    output, behaviour = plan.legs
    assert (output.name, output.models) == ("output", 2 + 6 * 2)
    assert (behaviour.name, behaviour.models) == ("behaviour", 2 * 3 + 2 * 2)
    assert plan_of(micro_pair, retrained=micro_pair / "models/retrained").legs[1].models == behaviour.models + 1
    assert plan_of(micro_pair, decompose=False).legs[1].models == behaviour.models - 4
    few = plan_of(micro_pair, items=2).legs[1]
    assert 0 < few.tokens < behaviour.tokens
    assert few.backward < behaviour.backward
    real = plan_of(micro_pair, real=True)
    assert [leg.models for leg in real.legs] == [output.models + 2, behaviour.models + 2]
    assert "by their own library come on top" in "\n".join(lines(real))
    weights = sum(p for p in (plan.shape.parameters,))
    assert behaviour.memory == round(6.4 * weights) + 2**30
    assert plan.seconds(few) < plan.seconds(behaviour)


def test_it_takes_the_dtype_into_account(micro_pair: Path) -> None:
    plan, narrow = plan_of(micro_pair), plan_of(micro_pair, dtype="bfloat16")
    weights = plan.shape.parameters
    for leg, half, models in zip(plan.legs, narrow.legs, (4, 1), strict=True):
        assert abs(leg.memory - half.memory - 2 * models * weights) <= ROUNDED
    assert as_object(narrow)["dtype"] == "bfloat16"
    assert as_object(narrow)["seconds"] is None
    text = "\n".join(lines(narrow))
    assert "at most on cpu, models in bfloat16" in text
    assert "rates are measured on this processor in float32, models run in bfloat16" in text
    assert as_object(plan_of(micro_pair, dtype="auto"))["dtype"] == "float32"  # as the files are stored


def test_it_prints_and_is_json(micro_pair: Path) -> None:
    plan = plan_of(micro_pair)
    told = json.loads(json.dumps(as_object(plan), allow_nan=False))
    assert told["seconds"] == math.fsum(plan.seconds(leg) for leg in plan.legs)
    text = "\n".join(lines(plan))
    assert "behaviour  10 models" in text
    assert "free here" in text
    elsewhere = plan_of(micro_pair, device="cuda")
    assert as_object(elsewhere)["seconds"] is None
    assert "unknown: rates are measured on this processor in float32, models run on cuda" in "\n".join(lines(elsewhere))
    assert "slow" not in text
    searched = plan_of(micro_pair, formats=("nf4-b64", "q6_k", "gguf:Q4_K_M", "hqq4-g64-opt", "gguf:Q8_0"))
    told = "\n".join(lines(searched))
    assert "slow       q6_k, gguf:Q4_K_M: scales are searched for" in told
    assert "slow       hqq4-g64-opt: measured by numpy" in told
    alone = plan_of(micro_pair, texts=None, benchmark=None)
    assert alone.legs == []
    assert "no model runs" in "\n".join(lines(alone))


def test_the_command_plans_and_writes_nothing(
    micro_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unforgotten.cli import app

    monkeypatch.chdir(tmp_path)
    pair = [str(micro_pair / "models" / name) for name in ("target", "unlearned")]
    asked = ["audit", *pair, "--benchmark", str(micro_pair / "corpus"), "--items", "2", "--dry-run", "--json"]
    app([*asked, "--out", "mine"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["legs"][0]["name"] == "behaviour"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "rule"),
    [("gpu", "must be auto, balanced, cpu, mps, cuda or cuda:N, got 'gpu'"), ("cuda", "needs --texts or")],
)
def test_a_device_is_named_as_torch_names_it_and_needs_models(device: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_options(Asked(device=device), "unlearned")


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"dtype": "bf16"}, "^--dtype must be one of float32, bfloat16, float16, auto, got 'bf16'$"),
        ({"dtype": "bfloat16"}, "^--dtype needs --texts or --benchmark, got 'bfloat16'$"),
    ],
)
def test_a_dtype_is_named_as_torch_names_it_and_needs_models(asked: dict[str, str], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_options(Asked(**asked), "unlearned")  # type: ignore[arg-type]  # strings, as both of them are


def test_a_device_that_is_missing_is_refused_before_the_weights_are_read(
    micro_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU: on one with it the device is there")
    from unforgotten.cli import app

    pair = [str(micro_pair / "models" / name) for name in ("target", "unlearned")]
    asked = [
        "audit",
        *pair,
        "--benchmark",
        str(micro_pair / "corpus"),
        "--device",
        "cuda:3",
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(ValueError, match="--device must be there, got 'cuda:3' where torch sees 0 GPUs"):
        app(asked, standalone_mode=False)
    assert "weights" not in capsys.readouterr().err

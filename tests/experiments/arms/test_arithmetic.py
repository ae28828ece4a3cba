"""What an arm computes in: its parameters and nothing else are converted, and its reference is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

torch = pytest.importorskip("torch", reason="models need unforgotten[experiments]")

from torch.utils._python_dispatch import _get_current_dispatch_mode

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments import run
from unforgotten.experiments.arms import states
from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.arms.arm import arms
from unforgotten.experiments.arms.products import Float32Products
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods import descent, reference
from unforgotten.experiments.methods.method import Outcome, Task
from unforgotten.experiments.methods.reference import References, make_reference
from unforgotten.experiments.methods.retain import retain_divergence
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.log_probs import distributions, token_log_probs
from unforgotten.experiments.models.saved import load_model

FP32 = Arithmetic(torch.float32, "none", "float32")
BF16 = Arithmetic(torch.bfloat16, "none", "float32")
NATIVE = Arithmetic(torch.bfloat16, "none", "native")
MIXED = Arithmetic(torch.float32, "bf16", "float32")
DOCUMENTS = [[1, *range(40 + n, 70 + 2 * n)] for n in range(3)]


@pytest.mark.parametrize(
    ("arithmetic", "name", "converted"),
    [
        (FP32, "float32", False),
        (BF16, "float32 rounded to bfloat16", True),
        (NATIVE, "native bfloat16", False),
        (MIXED, "float32 rounded to bfloat16", True),
    ],
)
def test_products_are_converted_where_there_are_any_in_bfloat16(
    arithmetic: Arithmetic, name: str, converted: bool
) -> None:
    assert arithmetic.products_name == name
    with arithmetic.computing():
        assert isinstance(_get_current_dispatch_mode(), Float32Products) is converted


def test_frequencies_of_positions_stay_as_transformers_loads_them(micro_pair: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(micro_pair / "models/target")
    BF16.cast(model)
    folder = micro_pair / "models/target"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for (name, ours), (_, theirs) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.dtype == torch.float32


def scored(model: Any, arithmetic: Arithmetic) -> Any:
    batch = pad(DOCUMENTS, 0)
    kinds = torch.autocast("cpu", torch.bfloat16, enabled=arithmetic.autocast == "bf16")
    with torch.no_grad(), arithmetic.computing(), kinds:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return token_log_probs(logits, batch.input_ids, batch.attention_mask), distributions(logits)


@pytest.mark.parametrize("arithmetic", [FP32, BF16, NATIVE, MIXED], ids=lambda a: a.products_name)
def test_before_the_first_step_the_target_is_its_own_reference(arithmetic: Arithmetic, micro_pair: Path) -> None:
    target = load_model(micro_pair / "models/target")
    reference = make_reference(target, (DOCUMENTS, DOCUMENTS), len(DOCUMENTS), arithmetic)
    ours, whole = scored(target, arithmetic)
    with arithmetic.computing(), torch.autocast("cpu", torch.bfloat16, enabled=arithmetic.autocast == "bf16"):
        seen = distributions(reference.retain.logits(range(len(DOCUMENTS))))
    assert torch.equal(reference.forget.sequences, ours.label.sum(-1))
    assert float(retain_divergence(whole, ours.mask, seen)) == 0.0
    assert all(p.dtype == arithmetic.parameters for p in target.parameters())


def test_a_reference_of_another_arithmetic_is_another(micro_pair: Path) -> None:
    made = []
    for arithmetic in (FP32, BF16):
        target = load_model(micro_pair / "models/target")
        reference = make_reference(target, (DOCUMENTS, DOCUMENTS), len(DOCUMENTS), arithmetic)
        made.append(reference.forget.sequences)
    assert not torch.equal(*made)


def test_every_arm_is_given_the_reference_of_its_own_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms of equal arithmetic share one: fp32 has its own, bf16 and bf16-sr have another, whatever the method."""
    config = load_config(str(Path(__file__).parents[2] / "micro.yaml"))
    made: list[Arithmetic] = []
    given: list[tuple[str, Any]] = []
    monkeypatch.setattr(run, "load_model", lambda folder: torch.nn.Linear(1, 1))
    monkeypatch.setattr(states, "save_model", lambda *args: None)

    def make(target: None, documents: Any, batch: int, arithmetic: Arithmetic) -> Arithmetic:
        made.append(arithmetic)
        return arithmetic

    def descend(model: Any, forget: Any, retain: Any, settings: Any, task: Task, step: None, means: Any) -> Outcome:
        given_reference: Any = task.reference(model)
        kept = torch.float32 if task.storage == "fp32" else torch.bfloat16
        assert given_reference == task.arithmetic == Arithmetic(kept, settings.autocast, settings.products)
        given.append((task.storage, given_reference.products_name))
        return Outcome(1, "max_steps", 0.0)

    monkeypatch.setattr(reference, "make_reference", make)
    monkeypatch.setattr(descent, "descend", descend)
    probing = MagicMock(), MagicMock()
    references = References([], [], 1)
    for arm in arms(config):
        run._unlearn_arm(config, probing, arm, tmp_path, references, SILENT)
    assert len(given) == 3 * len(config.methods)
    assert [a.parameters for a in made] == [torch.float32, torch.bfloat16]
    assert {storage for storage, name in given if name == "float32"} == {"fp32"}

"""Q of a run's models: what is calibrated is computed once, read as it was, and computed again by other code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="runs need unforgotten[experiments]")

from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models.quantized_states import FOLDER, QuantizedStates
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.run import run
from unforgotten.records.rows import read_run

MICRO = Path(__file__).parents[2] / "micro.yaml"
GPTQ = "gptq-retain:int4-g64"


@dataclass(frozen=True)
class CountingShell(Shell):
    """A shell that counts what it quantizes."""

    calls: list[str] = field(default_factory=list)

    def quantized(self, state: State, format_name: str) -> State:
        self.calls.append(format_name)
        return super().quantized(state, format_name)


@pytest.fixture
def shell(micro_pair: Path) -> CountingShell:
    model, tokenizer = load_model(micro_pair / "models/target"), load_tokenizer(micro_pair / "models/target")
    documents = [[tokenizer.bos_token_id, *range(20 + i, 60 + i)] for i in range(4)]
    return CountingShell(model, tokenizer, {"retain": documents})


def test_what_is_calibrated_is_computed_once_and_read_as_it_was(shell: CountingShell, tmp_path: Path) -> None:
    state = state_of(shell.model)
    quantized = QuantizedStates(shell, tmp_path, "one")
    first = {name: w.clone() for name, w in quantized.of("a", state, GPTQ).items()}
    again = quantized.of("a", state, GPTQ)
    assert shell.calls == [GPTQ]
    computed = shell.quantized(state, GPTQ)
    for name, w in state.items():
        assert torch.equal(first[name], computed[name])
        assert torch.equal(again[name], computed[name])
        assert torch.equal(first[name], w) == (name not in shell.names)
    quantized.of("b", state, GPTQ)
    QuantizedStates(shell, tmp_path, "another").of("a", state, GPTQ)
    assert shell.calls.count(GPTQ) == 4


def test_others_are_made_when_they_are_asked_for(shell: CountingShell, tmp_path: Path) -> None:
    state = state_of(shell.model)
    quantized = QuantizedStates(shell, tmp_path, "one")
    assert quantized.of("a", state, "none") is state
    for _ in range(2):
        quantized.of("a", state, "int4-g64")
        assert isinstance(quantized.of("a", state, "smoothquant-retain:int8-row"), RuntimeState)
    assert list(tmp_path.iterdir()) == []


def test_they_are_forgotten_by_model(shell: CountingShell, tmp_path: Path) -> None:
    state, quantized = state_of(shell.model), QuantizedStates(shell, tmp_path / "q", "one")
    for name in ("a", "b"):
        quantized.of(name, state, GPTQ)
    quantized.forget("a")
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["b"]
    quantized.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_run_calibrates_each_model_once_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation and decomposition share it; nothing is left of it at the end."""
    calls: list[str] = []
    plain = Shell.quantized

    def counted(self: Shell, state: State, format_name: str) -> State:
        calls.append(format_name)
        return plain(self, state, format_name)

    monkeypatch.setattr(Shell, "quantized", counted)
    own: dict[str, Any] = {"only_methods": ["NPO_GDR"], "storages": ["fp32"], "formats": ["int4-g64", GPTQ]}
    run(load_config(str(MICRO), settings=own), tmp_path / "run", resume=False)
    assert calls.count(GPTQ) == 3  # retrained, target, unlearned
    assert calls.count("int4-g64") == 5  # the last two again, for what was lost
    assert not (tmp_path / "run" / FOLDER).exists()
    assert read_run(tmp_path / "run").get("gating_effect", "unlearned", "NPO_GDR", "fp32", GPTQ) is not None

"""Files by other people's quantizers: the audit decodes them as they do; each is skipped where the tool is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the study needs unforgotten[experiments]")

from transformers import LlamaConfig, LlamaForCausalLM

from unforgotten.audit import audit_pair
from unforgotten.audit.deployed.stored import open_deployed
from unforgotten.audit.sources.open import open_source
from unforgotten.experiments.models.shell import linear_names
from unforgotten.experiments.models.tokenizer import train_tokenizer
from unforgotten.experiments.studies.deployed_files import unequal
from unforgotten.experiments.studies.tool_files import GROUP, TOOLS, check_tools
from unforgotten.records.extras import module_of
from unforgotten.reports.studies.deployed_files import render
from unforgotten.reports.verdicts.claim import WHOLE

WIDTH, VOCABULARY = 2 * GROUP, 300
UPDATE = 0.01
"""Standard deviation of the update, half that of the weights: no format swallows it."""


def saved(path: Path, update: float) -> Path:
    """A Llama whose norms are uneven, so that AWQ has channels to scale."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.add_(update * noise) if p.dim() == 2 else p.copy_(torch.exp(0.7 * noise))
    model.save_pretrained(path)
    words = " ".join(f"word{i}" for i in range(VOCABULARY))
    train_tokenizer([words], VOCABULARY).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return saved(root / "target", 0.0), saved(root / "unlearned", UPDATE)


@pytest.mark.parametrize("name", TOOLS)
def test_the_audit_decodes_what_a_tool_writes_as_the_tool_does(
    name: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tool = TOOLS[name]
    if importlib.util.find_spec(module_of(tool.requirement)) is None:
        pytest.skip(f"{tool.requirement} is missing: compares with the library")
    generator = torch.Generator().manual_seed(3)
    documents = torch.randint(3, VOCABULARY, (12, 48), generator=generator).tolist()
    files = []
    for model in pair:
        files.append(tmp_path / f"{model.name}.gguf")
        tool.write(model, files[-1], documents)
    names = linear_names(LlamaForCausalLM.from_pretrained(pair[0]))
    opened = open_deployed(files, (open_source(pair[0]), open_source(pair[1])), names)
    for artefact, file in zip(opened, files, strict=True):
        assert set(artefact.stored) == set(names)
        assert unequal(artefact, tool.decode(file), tool.dtype) == 0
    other = tool.decode(files[1])
    assert unequal(opened[0], other, tool.dtype) > 0  # the comparison can fail
    found = audit_pair(*pair, [tool.ours], deployed=(str(files[0]), str(files[1])))["deployed"]
    assert found is not None
    assert any("scaled one by one" in note for note in found["notes"]) == name.endswith("awq")
    assert found["gain"] == pytest.approx(1, abs=WHOLE)


def test_tools_that_are_unknown_or_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"tools must be of llama-cpp, gptqmodel, .*, got 'other'"):
        check_tools(["other"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gptqmodel is missing: pip install 'gptqmodel=="):
        check_tools(["gptqmodel"])


def test_a_row_says_what_was_read_otherwise(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "run": "demo",
        "method": "GA",
        "storage": "bf16",
        "written_by": "gptqmodel",
        "tool": "gptqmodel==7.6.0",
        "types": [{"type": "gptq:int4-g64", "tensors": 28}],
        "unequal": 3,
        "weights": 100,
        "gain": 0.5,
        "cosine": None,
        "ours": "int4-g64",
        "ours_gain": 0.25,
        "ours_cosine": 1.0,
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    last = render(tmp_path)["table.md"].splitlines()[-1]
    assert "gptq:int4-g64 28 | 3 of 200 | 0.50 | – | int4-g64 | 0.25 | 1.00 |" in last

"""What a configuration says of devices and memory, and that one which says nothing is what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.load_config import load_config

ROOT = Path(__file__).parents[3]
MICRO = str(ROOT / "tests/micro.yaml")


def test_a_default_section_changes_no_text_and_no_hash() -> None:
    plain, named = load_config(MICRO), load_config(MICRO, overrides=["compute.device=cpu", "compute.micro_batch=null"])
    assert "compute" not in json.loads(plain.model_dump_json())
    assert named.model_dump_json() == plain.model_dump_json()
    assert named.hash == plain.hash


@pytest.mark.parametrize(
    "override",
    ["device=auto", "evaluation_dtype=bfloat16", "gradient_checkpointing=true", "micro_batch=2", "adamw=fused"],
)
def test_a_setting_is_in_the_text_and_in_the_hash(override: str) -> None:
    config = load_config(MICRO, overrides=[f"compute.{override}"])
    name, _, value = override.partition("=")
    assert json.loads(config.model_dump_json())["compute"] == {name: yaml.safe_load(value)}
    assert config.hash != load_config(MICRO).hash
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("override", ["device=gpu", "device=cuda:x", "micro_batch=0", "adamw=quick", "dtype=bfloat16"])
def test_another_value_is_one_line_that_names_the_setting(override: str) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*compute\.{override.partition('=')[0]}[^\n]*$"):
        load_config(MICRO, overrides=[f"compute.{override}"])


def test_a_device_that_is_not_there_is_one_line() -> None:
    torch = pytest.importorskip("torch", reason="devices are torch's")
    from unforgotten.experiments.compute.device import device_of
    from unforgotten.experiments.compute.settings import ComputeConfig

    missing = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ValueError, match=rf"^compute\.device must be there, got 'cuda:{missing}' where torch sees "):
        device_of(ComputeConfig(device=f"cuda:{missing}"))
    assert device_of(ComputeConfig()) == torch.device("cpu")
    assert device_of(ComputeConfig(device="auto")).type in ("cuda", "mps", "cpu")


def test_products_of_bfloat16_are_native_on_a_gpu() -> None:
    pytest.importorskip("torch", reason="products are torch's")
    from unforgotten.experiments.arms.products import resolve

    assert resolve("auto", "cuda") == "native"
    assert resolve("float32", "cuda") == "float32"


def test_paged_moments_where_they_are_not_the_arms_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="optimizers are torch's")
    pytest.importorskip("bitsandbytes", reason="paged AdamW needs unforgotten[quantizers]")
    from unforgotten.experiments.methods.optimizers import adamw

    with pytest.raises(ValueError, match=r"^compute\.adamw paged must have float32 parameters on cuda, "):
        adamw([torch.nn.Parameter(torch.zeros(2))], 1e-3, "paged")


def test_paged_adamw_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="optimizers are torch's")
    import sys

    from unforgotten.experiments.methods.optimizers import adamw

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"^[^\n]*bitsandbytes[^\n]*pip install[^\n]*$"):
        adamw([torch.nn.Parameter(torch.zeros(2))], 1e-3, "paged")


def test_fused_adamw_makes_the_same_steps_to_rounding() -> None:
    torch = pytest.importorskip("torch", reason="optimizers are torch's")
    from unforgotten.experiments.methods.optimizers import adamw

    ends, rtol = [], 4 * torch.finfo(torch.float32).eps ** 0.5
    for kind in ("plain", "fused"):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 64))
        optimizer = adamw([weight], 1e-2, kind)
        assert bool(optimizer.defaults["fused"]) == (kind == "fused")
        for _ in range(5):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        ends.append(weight.detach() - torch.linspace(-1, 1, 64))
    assert torch.linalg.vector_norm(ends[0] - ends[1]) <= rtol * torch.linalg.vector_norm(ends[0])


def test_processes_that_accelerate_does_not_see_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take itself for the first, and write the rows."""
    pytest.importorskip("accelerate", reason="processes are accelerate's")
    import accelerate

    from unforgotten.experiments.compute.processes import processes

    class OfOne:
        num_processes = 1

        def __init__(self, **options: object) -> None:
            pass

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", OfOne)
    with pytest.raises(ValueError, match=r"^processes of a launch must have a GPU each, .*sees 1 of WORLD_SIZE=2$"):
        processes.__wrapped__()

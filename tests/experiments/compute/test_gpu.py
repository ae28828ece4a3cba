"""What holds on a GPU: run wherever torch sees one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="GPUs are torch's")

from unforgotten.experiments.arms.processor import processor_of
from unforgotten.experiments.compute.settings import ComputeConfig
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.quantizers.own import own_codes, own_values
from unforgotten.verification.domains.micro_target import micro_target, micro_task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand: torch sees no CUDA device"),
]
MICRO = Path(__file__).parents[2] / "micro.yaml"
RTOL = 4 * torch.finfo(torch.float32).eps ** 0.5
FORMATS = (
    "int4-g64",
    "int8-row",
    "int4-g64-asym",
    "nf4-b64",
    "fp4-b64",
    "hqq4-g64",
    "mxfp4-b32",
    "nvfp4",
    "int4-g64-dither",
)


@pytest.mark.parametrize("name", FORMATS)
def test_codes_and_values_are_those_of_the_cpu_bit_for_bit(name: str) -> None:
    w = 0.02 * torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    for function in (own_codes, own_values):
        assert torch.equal(function(w.cuda(), name).cpu(), function(w, name))


@pytest.mark.parametrize(
    "method", ["GA", "NPO_GDR", "NPO_KLR", "SimNPO_GDR", "UNDIAL", "RMU", "GA_GDR_SURE", "NPO_KLR_SAM"]
)
@pytest.mark.parametrize("compute", [{}, {"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_a_method_moves_a_model_as_on_the_cpu_to_rounding(method: str, compute: dict[str, Any]) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        model = micro_target()
        torch.nn.Module.to(model, device)
        task = micro_task(max_steps=3, lr=0.1, optimizer="sgd", compute=ComputeConfig(**compute))
        method_named(method).unlearn(model, task, method_named(method).settings())
        ends.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in micro_target().parameters()])
    assert torch.linalg.vector_norm(ends[1] - ends[0]) <= RTOL * torch.linalg.vector_norm(ends[0] - start)


@pytest.mark.parametrize("adamw", ["plain", "fused", "paged"])
def test_every_adamw_moves_a_model(adamw: Any) -> None:
    if adamw == "paged":
        pytest.importorskip("bitsandbytes", reason="paged AdamW needs unforgotten[quantizers]")
    model = micro_target()
    torch.nn.Module.to(model, "cuda")
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    method_named("GA").unlearn(model, micro_task(compute=ComputeConfig(adamw=adamw)), method_named("GA").settings())
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert after.is_cuda
    assert bool((after != before).any())


SPACING = {"float32": RTOL, "bfloat16": 2.0**-8}
"""Of a loss: in bfloat16 one step of the logits, which the sums of another device may round to the other side."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["auto", "balanced"])
def test_the_legs_of_an_audit_say_their_gpus(micro_pair: Path, device: str, dtype: str) -> None:
    from unforgotten.experiments.legs.behaviour import behaviour_leg
    from unforgotten.experiments.legs.output import output_leg

    pair = micro_pair / "models/target", micro_pair / "models/unlearned"
    texts, formats = micro_pair / "corpus/privleak/forget.json", ["int4-g64"]
    there, here = (
        dict[str, Any](output_leg(*pair, formats, texts, device=place, dtype=dtype)) for place in (device, "cpu")
    )
    done = behaviour_leg(*pair, formats, micro_pair / "corpus", items=2, device=device, dtype=dtype)
    for leg in (there, dict[str, Any](done)):
        assert {place.partition(":")[0] for place in leg["ran"]["devices"]} == {"cuda"}
        assert leg["ran"]["dtype"] == dtype
        assert leg["ran"]["rounded"] == here["ran"]["rounded"]
    for name, loss in here["formats"][0]["losses"].items():
        assert there["formats"][0]["losses"][name]["value"] == pytest.approx(loss["value"], rel=SPACING[dtype])
    gains = [leg["functional"]["formats"][0]["gain"] for leg in (there, here)]
    assert gains[0] == pytest.approx(gains[1], rel=RTOL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_whole_run_says_its_gpu(tmp_path: Path, dtype: str) -> None:
    from unforgotten.experiments.run import run
    from unforgotten.records.rows import read_run

    settings = ["only_methods=[NPO_KLR]", "compute.device=cuda", f"compute.evaluation_dtype={dtype}"]
    run(load_config(str(MICRO), overrides=settings), tmp_path / "run", resume=False)
    rows = read_run(tmp_path / "run").rows
    assert {(row.device, row.processor) for row in rows} == {("cuda:0", processor_of(torch.device("cuda", 0)))}
    assert all(row.value is not None for row in rows if row.metric == "forget_loss")

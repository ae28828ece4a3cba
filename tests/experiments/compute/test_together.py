"""Two processes of one launch on CPUs, over gloo: weights shared out by FSDP, or documents alone, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("two processes on CPUs need a torch with gloo", allow_module_level=True)

SCRIPT = Path(__file__).with_name("unlearn_together.py")
MICRO = Path(__file__).parents[2] / "micro.yaml"
LAUNCH = Path(str(files("unforgotten.experiments").joinpath("launch")))
HANG_SECONDS = 3600
STEPS = 3
SAVED = 2.0**-8
"""Spacing of bfloat16, relative: a weight of a saved model may round to the other side; a loss is held to one such step."""
RTOL = 4 * torch.finfo(torch.float32).eps ** 0.5
CASES = ("NPO_GDR", "NPO_KLR,micro_batch=1", "GA_KLR,optimizer=adamw", "NPO_GDR_SURE", "RMU", "NPO_GDR,storage=bf16")
STOCHASTIC = "NPO_GDR,storage=bf16-sr,optimizer=adamw"
"""What is rounded at random is not shared out: every process computes all of it."""
KINDS = {"fsdp.yaml": "FSDP", "processes.yaml": "MULTI_CPU"}
Weights = Mapping[str, Any]


def launched(name: str, *arguments: str) -> None:
    """Start two processes on CPUs, in the environment that accelerate makes of a configuration that is shipped."""
    from accelerate.commands.config.config_args import load_config_from_file

    settings = yaml.safe_load((LAUNCH / name).read_text())
    assert load_config_from_file(str(LAUNCH / name)).mixed_precision == "no"
    own = {key.upper(): str(value).removesuffix("'") for key, value in settings.get("fsdp_config", {}).items()}
    own = {key: value.lower() if value in ("True", "False") else value for key, value in own.items()}
    sharded = {"ACCELERATE_USE_FSDP": "true"} if settings["distributed_type"] == "FSDP" else {}
    environment = {**os.environ, **own, **sharded, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module", params=KINDS)
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Mapping[str, Weights]]:
    out = tmp_path_factory.mktemp("together") / "states.pt"
    launched(request.param, str(SCRIPT), str(out), *CASES, STOCHASTIC)
    found = torch.load(out)
    assert (found["kind"], found["count"]) == (KINDS[request.param], 2)
    return found["kind"], found["states"]


@pytest.fixture(scope="module")
def alone() -> Mapping[str, Weights]:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from unlearn_together import of_case
    finally:
        sys.path.pop(0)
    return {case: of_case(case.replace(",micro_batch=1", "")) for case in (*CASES, STOCHASTIC)}


def norm(weights: Weights, others: Weights | None = None) -> float:
    squares = [(w.double() - (others[k].double() if others else 0.0)).square().sum() for k, w in weights.items()]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one_to_rounding(
    together: tuple[str, Mapping[str, Weights]], alone: Mapping[str, Weights], case: str
) -> None:
    """Float32: RTOL of the way. The arm bf16 rounds each step's weights, to 2^-8 of each at most."""
    from unforgotten.verification.domains.micro_target import micro_model

    weights, expected = together[1][case], alone[case]
    assert weights.keys() == expected.keys()
    way = norm(expected, micro_model().state_dict())
    allowed = STEPS * 2**-8 * norm(expected) if "bf16" in case else RTOL * way
    assert norm(weights, expected) <= allowed < way


def test_random_rounding_is_that_of_one_process_where_weights_would_be_shared_out(
    together: tuple[str, Mapping[str, Weights]], alone: Mapping[str, Weights]
) -> None:
    kind, states = together
    apart = norm(states[STOCHASTIC], alone[STOCHASTIC])
    assert apart == 0.0 if kind == "FSDP" else apart <= STEPS * 2**-8 * norm(alone[STOCHASTIC])


@pytest.mark.parametrize("code", [0, 2])
def test_a_process_of_a_launch_ends_without_teardown_and_with_its_code(tmp_path: Path, code: int) -> None:
    """Bad input ends with 2 as everywhere; of one process alone the interpreter is torn down as ever."""
    script = """
        import atexit, os, sys
        from unforgotten.experiments.compute import processes as module
        class Teardown:
            def __del__(self, write=os.write): write(1, b"torn down")
        kept = Teardown()
        atexit.register(print, "at exit")
        count = int(sys.argv[1])
        module.processes = lambda: module.Processes(1, count)
        module.processes.cache_info = lambda: type("", (), {"currsize": 1})
        sys.argv[1:] = ["audit", "nowhere", "nowhere else"] if sys.argv[2] == "2" else ["--version"]
        from unforgotten.cli import main
        main()
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    of_two, of_one = (
        subprocess.run([sys.executable, str(path), count, str(code)], capture_output=True, text=True, check=False)
        for count in ("2", "1")
    )
    assert of_two.returncode == of_one.returncode == code
    assert of_two.stderr == of_one.stderr
    assert ("unforgotten: " in of_two.stderr) == (code == 2)
    assert of_two.stdout.endswith("at exit\n")
    assert of_one.stdout == f"{of_two.stdout}torn down"


@pytest.mark.nightly
@pytest.mark.parametrize("name", KINDS)
def test_a_run_in_two_processes_has_the_rows_of_one(name: str, tmp_path: Path) -> None:
    """The first alone writes. Float32 weights are those of one process to rounding; trained models are saved in bfloat16."""
    from unforgotten.experiments.load_config import load_config
    from unforgotten.experiments.run import run
    from unforgotten.records.rows import read_run

    settings = ["only_methods=[NPO_GDR]", "storages=[fp32]", "unlearning.optimizer=sgd", "unlearning.lr={fp32: 0.5}"]
    named = [part for setting in settings for part in ("--set", setting)]
    launched(name, "-m", "unforgotten.cli", "run", str(MICRO), "--out", str(tmp_path / "two"), "--quiet", *named)
    run(load_config(str(MICRO), overrides=settings), tmp_path / "one", resume=False)
    one, two = (read_run(tmp_path / folder) for folder in ("one", "two"))
    assert [row.key for row in two.rows] == [row.key for row in one.rows]
    for metric in ("forget_loss", "gain"):
        before, after = (rows.value(metric, "unlearned", "NPO_GDR", "fp32", "int4-g64") for rows in (one, two))
        assert after == pytest.approx(before, rel=SAVED)


def test_configurations_of_launches_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {path.name: str(load_config_from_file(str(path)).distributed_type) for path in LAUNCH.glob("*.yaml")}
    assert {name: kind.rpartition(".")[2] for name, kind in kinds.items()} == {
        "fsdp.yaml": "FSDP",
        "deepspeed.yaml": "DEEPSPEED",
        "processes.yaml": "MULTI_GPU",
    }

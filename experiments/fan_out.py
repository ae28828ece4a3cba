"""A run whose arms are shared out to the workers of a Ray cluster, with the rows of one process.

The models that the run starts from are made and measured here. Then each arm is a task: it unlearns, evaluates and decomposes
in a worker, with `threads` of its CPUs, and writes its rows to a part of its own below `arms/`. Parts are taken into the run's
rows in the order of the arms. A lost worker loses its arm alone: Ray starts the task again, and the arm goes on with the first
stage that is not finished. All nodes must see the run's folder under the same path, and the same working directory.

    run_on("local", load_config("tiny"), Path("runs/tiny-seed0"), resume=False, progress=SILENT)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from unforgotten.audit.progress.stages import Progress
from unforgotten.audit.weights.ray_cluster import RETRIES, RayWorkers
from unforgotten.experiments.arms.arm import Arm, arms
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.compute.processes import processes
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.models.quantized_states import FOLDER as QUANTIZED
from unforgotten.experiments.run import run, stages
from unforgotten.records.extras import need
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.store import RowStore

PARTS = "arms"
"""Folder below that of a run with the parts of arms that are at work."""


def stages_on(address: str | None, config: RunConfig) -> list[str]:
    """Return every stage of a run, in order; where there is a cluster a whole arm is one.

    Raises:
        ValueError: the address is empty, Ray is missing, or this process is one of several of a launch.
    """
    if address is None:
        return stages(config)
    if not address.strip():
        raise ValueError(f"--ray must be an address, as local, auto or ray://host:port, got {address!r}")
    need("unforgotten[ray]", "ray")
    if processes().count > 1:
        raise ValueError(f"--ray must be given to one process, got a launch of {processes().count}")
    own = {stage for of_arm in _stages_of_arms(config).values() for stage in of_arm}
    return [stage for stage in stages(config) if stage not in own] + [f"arm {arm.name}" for arm in arms(config)]


def run_on(address: str | None, config: RunConfig, folder: Path, *, resume: bool, progress: Progress) -> Path:
    """Do everything that is not done yet, in this process or, with an address, its arms on the cluster there.

    Raises:
        ValueError: as `run`; or no node of the cluster has the CPUs of one arm.
        ConnectionError: there is no cluster at the address.
        ChildProcessError: the worker of an arm was lost again and again; the other arms are done.
    """
    if address is None:
        return run(config, folder, resume=resume, progress=progress)
    cluster = RayWorkers(address)
    try:
        needs = _needs(cluster.ray, config)
        run(config, folder, resume=resume, progress=progress, only=())
        _share_out(cluster, needs, config, folder, progress)
    finally:
        cluster.leave()
    for name in (PARTS, QUANTIZED):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder / ROWS_FILE


def _share_out(cluster: RayWorkers, needs: dict[str, int], config: RunConfig, folder: Path, progress: Progress) -> None:
    """Wait for the arms in their order, and take their rows; of one that failed and those after it, leave them in their parts."""
    remote = cluster.ray.remote(max_retries=RETRIES, max_calls=1, **needs)(_work)  # a process of its own for each arm
    store, given, where = RowStore(folder, {}), config.model_dump(mode="json"), (str(folder.resolve()), os.getcwd())
    undone = [arm for arm, (_, *measured) in _stages_of_arms(config).items() if not all(map(store.done, measured))]
    tasks = {arm: remote.remote(given, *where, arm) for arm in undone}
    failures: list[Exception] = []
    for arm in arms(config):
        if arm not in tasks:
            progress.skip()
            continue
        try:
            with progress.stage(f"arm {arm.title}"):
                cluster.ray.get(tasks[arm])
                if not failures:
                    store.take(_part(arm))
        except cluster.ray.exceptions.RayError as error:
            failures.append(_failure(arm, error))
    if failures:
        raise failures[0]


def _stages_of_arms(config: RunConfig) -> dict[Arm, list[str]]:
    """Return the stages of each arm, in order; the first unlearns, the others write rows."""
    every, found = stages(config), arms(config)
    starts = [every.index(f"unlearn {arm.name}") for arm in found]
    return {arm: every[start:end] for arm, start, end in zip(found, starts, [*starts[1:], None], strict=True)}


def _failure(arm: Arm, error: Exception) -> Exception:
    """Return what an arm raised, or that its worker was lost."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return cause
    return ChildProcessError(f"the worker of {arm.title} was lost {RETRIES + 1} times; go on with --resume")


def _needs(ray: Any, config: RunConfig) -> dict[str, int]:
    """Return what a task takes of a node.

    Raises:
        ValueError: no node has that much; Ray would wait for one without end.
    """
    needs = {"CPU": config.threads, "GPU": int(device_of(config.compute).type == "cuda")}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= count for kind, count in needs.items()) for node in nodes):
        largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise ValueError(
            f"threads must be at most the CPUs of a node of --ray ({largest}), got threads={config.threads}"
            + (" and a GPU" if needs["GPU"] else "")
        )
    return {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"]}


def _part(arm: Arm) -> str:
    return f"{PARTS}/{arm.name}"


def _work(given: dict[str, Any], folder: str, place: str, arm: Arm) -> None:
    """Do one arm of a run in this worker, as in the directory where the run was started."""
    os.chdir(place)
    run(RunConfig.model_validate(given), Path(folder), resume=True, only=(arm,), part=_part(arm))

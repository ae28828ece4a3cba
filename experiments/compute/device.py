"""The device that a configuration names, or the map of devices over which a model is spread."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from unforgotten.experiments.compute.settings import ComputeConfig

BALANCED = "balanced"
"""All GPUs that torch sees: the layers of a model go to them in even shares, in order, by accelerate."""

Place = torch.device | str | Mapping[str, str]
"""Where a model goes: one device, or a `device_map` of transformers, a name or the device of each module."""


def place_named(name: str) -> Place:
    """Return where the models of a name of `--device` go: as `device_named`, or "balanced".

    Raises:
        ValueError: no such device is there.
    """
    if name != BALANCED:
        return device_named(name)
    if not torch.cuda.is_available():
        raise ValueError(f"--device must be there, got {BALANCED!r} where torch sees 0 GPUs")
    return BALANCED


def device_named(name: str) -> torch.device:
    """Return the device of a name of `--device`: auto, cpu, mps, cuda or cuda:N.

    Raises:
        ValueError: it is not there.
    """
    try:
        return device_of(ComputeConfig(device=name))
    except ValueError as error:
        raise ValueError(str(error).replace("compute.device", "--device")) from None


def device_of(config: ComputeConfig) -> torch.device:
    """Return the device of this process.

    Raises:
        ValueError: it is not there.
    """
    from unforgotten.experiments.compute.processes import processes

    name = _first() if config.device == "auto" else config.device
    device = torch.device(name)
    if device.type == "cuda":
        return _gpu(device, processes().local)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("compute.device must be there, got 'mps' where torch sees none")
    return device


def _first() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _gpu(device: torch.device, local: int | None) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = (local or 0) if device.index is None else device.index
    if local is not None and device.index is not None:
        raise ValueError(f"compute.device must be cuda or auto in several processes, got '{device}'")
    if number >= count:
        raise ValueError(f"compute.device must be there, got 'cuda:{number}' where torch sees {count} GPUs")
    return torch.device("cuda", number)

"""The processor or GPU that a run computes on."""

from __future__ import annotations

import platform
from typing import Any

import torch


def processor_of(device: torch.device) -> str:
    """Return the name of a device: of a GPU its model, of the CPU as `processor`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """Return the CPU's name, and the vector instructions that torch's own kernels use: sums in float32 depend on both."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # an older torch has none
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"

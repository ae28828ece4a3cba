"""The processor that a run computes on."""

from __future__ import annotations

import platform
from typing import Any

import torch


def processor() -> str:
    """Return its name, and the vector instructions that torch's own kernels use: sums in float32 depend on both."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # an older torch has none
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"

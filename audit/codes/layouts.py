"""How quantized checkpoints store a layer, by the name of the layout. What a scheme is: `sources.quantization`."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.audit.codes import bitsandbytes, compressed_tensors, gptq
from unforgotten.audit.codes.layer import Layout

LAYOUTS: Mapping[str, Layout] = {
    "gptq": Layout(".qweight", gptq.gptq),
    "awq": Layout(".qweight", gptq.awq),
    "bnb-4bit": Layout(".weight.absmax", bitsandbytes.bnb_4bit),
    "bnb-8bit": Layout(".SCB", bitsandbytes.bnb_8bit),
    "ct-packed": Layout(".weight_packed", compressed_tensors.packed),
    "ct-plain": Layout(".weight_scale", compressed_tensors.plain),
    "ct-nvfp4": Layout(".weight_packed", compressed_tensors.nvfp4),
}
"""By `Scheme.layout`."""

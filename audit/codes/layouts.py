"""How quantized checkpoints store a layer, by the name of the layout. What a scheme is: `sources.quantization`."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.audit.codes import bitsandbytes, compressed_tensors, gptq
from unforgotten.audit.codes.layer import CodeLayout

LAYOUTS: Mapping[str, CodeLayout] = {
    "gptq": CodeLayout(".qweight", gptq.gptq),
    "awq": CodeLayout(".qweight", gptq.awq),
    "bnb-4bit": CodeLayout(".weight.absmax", bitsandbytes.bnb_4bit),
    "bnb-8bit": CodeLayout(".SCB", bitsandbytes.bnb_8bit),
    "ct-packed": CodeLayout(".weight_packed", compressed_tensors.packed),
    "ct-plain": CodeLayout(".weight_scale", compressed_tensors.plain),
    "ct-nvfp4": CodeLayout(".weight_packed", compressed_tensors.nvfp4),
}
"""By `Scheme.layout`."""

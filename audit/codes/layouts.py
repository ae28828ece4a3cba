"""How quantized checkpoints store a layer, by the name of the layout. What a scheme is: `sources.quantization`."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.audit.codes import bitsandbytes, block_scales, compressed_tensors, float4, gptq
from unforgotten.audit.codes.layer import CodeLayout

LAYOUTS: Mapping[str, CodeLayout] = {
    "gptq": CodeLayout((".qweight",), gptq.gptq),
    "awq": CodeLayout((".qweight",), gptq.awq),
    "bnb-4bit": CodeLayout((".weight.absmax",), bitsandbytes.bnb_4bit),
    "bnb-8bit": CodeLayout((".SCB",), bitsandbytes.bnb_8bit),
    "ct-packed": CodeLayout((".weight_packed",), compressed_tensors.packed),
    "ct-plain": CodeLayout((".weight_scale",), compressed_tensors.plain),
    "ct-nvfp4": CodeLayout((".weight_packed",), compressed_tensors.nvfp4),
    "ct-block": CodeLayout((".weight_scale",), block_scales.ct_block),
    "fp8-tensor": CodeLayout((".weight_scale", ".weight_scale_inv"), compressed_tensors.fp8_tensor),
    "fp8": CodeLayout((".weight_scale_inv",), block_scales.fp8),
    "modelopt-nvfp4": CodeLayout((".weight_scale_2",), float4.modelopt_nvfp4),
    "mxfp4": CodeLayout(("_blocks",), float4.mxfp4),
}
"""By `Scheme.layout`."""

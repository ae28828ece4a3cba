"""How quantized checkpoints store a layer, by the name of the layout. What a scheme is: `sources.quantization`."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.audit.codes import bitsandbytes as artefact_bnb
from unforgotten.audit.codes import compressed_tensors as artefact_ct
from unforgotten.audit.codes import gptq as artefact_gptq
from unforgotten.audit.codes.layer import Layout

LAYOUTS: Mapping[str, Layout] = {
    "gptq": Layout(".qweight", artefact_gptq.gptq),
    "awq": Layout(".qweight", artefact_gptq.awq),
    "bnb-4bit": Layout(".weight.absmax", artefact_bnb.bnb_4bit),
    "bnb-8bit": Layout(".SCB", artefact_bnb.bnb_8bit),
    "ct-packed": Layout(".weight_packed", artefact_ct.packed),
    "ct-plain": Layout(".weight_scale", artefact_ct.plain),
    "ct-nvfp4": Layout(".weight_packed", artefact_ct.nvfp4),
}
"""By `Scheme.layout`."""

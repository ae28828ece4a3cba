"""Sampled answers that depend on their prompt, their number and a seed alone: not on the batch, nor on the order of prompts.

The token of the largest logit / T + g, g standard Gumbel noise, is a draw from the softmax of logit / T. So greedy generation samples
where each row has noise of its own:

    processor = GumbelNoise([seed_of(prompt, seed=0, number=0) for prompt in prompts], temperature=1.0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Drawing(NamedTuple):
    """How answers are drawn.

    Attributes:
        temperature: temperature of the distribution, > 0.
        seed: seed of all answers.
        number: number of the answer among those that are drawn to one prompt.
        most_likely: number of likeliest tokens that each is drawn from; None for all.
    """

    temperature: float
    seed: int
    number: int = 0
    most_likely: int | None = None

    def noise(self, prompts: Sequence[Sequence[int]]) -> GumbelNoise:
        """Return the noise of a batch of prompts."""
        seeds = [seed_of(prompt, seed=self.seed, number=self.number) for prompt in prompts]
        return GumbelNoise(seeds, self.temperature, self.most_likely)


def seed_of(prompt: Sequence[int], *, seed: int, number: int) -> int:
    """Return the seed of one sampled answer to a prompt, 0 to 2^63 - 1."""
    digest = hashlib.sha256(repr((seed, number, list(prompt))).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class GumbelNoise(LogitsProcessor):
    """Turns greedy generation into sampling, each row by a generator of its own.

    Args:
        seeds: seed of each row of the batch.
        temperature: temperature of the distribution, > 0.
        most_likely: number of likeliest tokens that are drawn from; None for all.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, most_likely: int | None = None) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._most_likely = most_likely

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Return logits / T with noise, (rows, vocabulary), float32."""
        size = scores.shape[-1]
        if self._most_likely is not None and self._most_likely < size:
            least = scores.topk(self._most_likely).values[..., -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        even = torch.stack([torch.rand(size, generator=g, dtype=torch.float64) for g in self._generators])
        noise = -(-even.log()).log()
        return scores.float() / self._temperature + noise.float().to(scores.device)

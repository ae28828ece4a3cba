"""leak@k: the estimator is without bias, and sampled answers hang on their prompt, number and seed alone."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from transformers import LlamaConfig, LlamaForCausalLM

from unforgotten.experiments.config import EvaluationConfig
from unforgotten.experiments.metrics.examined import Examined
from unforgotten.experiments.metrics.on_demand.leak_at_k import METRICS, leak_estimate
from unforgotten.experiments.metrics.registry import metric_named
from unforgotten.experiments.metrics.rouge import rouge_recalls
from unforgotten.experiments.metrics.settings import LeakConfig
from unforgotten.experiments.models.sampling import Drawing, GumbelNoise, seed_of

VOCABULARY, NEW_TOKENS = 64, 8
ROUNDINGS = 8 * 2.0**-53  # a quotient and a difference, and the same of what is compared
DRAWS, ALPHA = 20_000, 1e-10
HOEFFDING = math.sqrt(math.log(2 / ALPHA) / (2 * DRAWS))
PROMPTS = [[2, 5 + i, *range(9, 12 + i)] for i in range(6)]


@given(st.integers(1, 7), st.data())
def test_the_estimate_is_the_share_of_sets_with_a_leak(n: int, data: st.DataObject) -> None:
    leaks, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    sets = [any(i < leaks for i in chosen) for chosen in combinations(range(n), k)]
    assert leak_estimate(n, leaks, k) == pytest.approx(sum(sets) / len(sets), abs=ROUNDINGS)


@given(st.integers(1, 9), st.fractions(0, 1, max_denominator=20), st.data())
def test_the_estimate_is_without_bias(n: int, p: Fraction, data: st.DataObject) -> None:
    """Over the binomial law of the leaks among n its mean is 1 - (1 - p)^k, exactly."""
    k = data.draw(st.integers(1, n))
    mean = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * (1 - Fraction(math.comb(n - c, k), math.comb(n, k)))
        for c in range(n + 1)
    )
    assert mean == 1 - (1 - p) ** k
    found = sum(float(math.comb(n, c) * p**c * (1 - p) ** (n - c)) * leak_estimate(n, c, k) for c in range(n + 1))
    assert found == pytest.approx(float(mean), abs=(n + 1) * ROUNDINGS)


@pytest.mark.parametrize("k", [0, 5])
def test_a_set_of_more_answers_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k must be from 1 to the number of samples \(4\), got k={k}"):
        leak_estimate(4, 1, k)


def test_a_configuration_draws_as_many_answers_as_it_asks_for() -> None:
    with pytest.raises(ValueError, match=r"leak.samples must be at least 32 for leak_at_32, got samples=16"):
        EvaluationConfig(metrics=("leak_at_1", "leak_at_32"))
    assert "leak" not in EvaluationConfig(metrics=("leak_at_16",)).model_dump()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Each frequency within Hoeffding's bound; it tells one temperature from the next."""
    logits = torch.tensor([1.0, 0.0, -0.5, 2.0])
    expected = {t: (logits / t).softmax(0).numpy() for t in (0.5, 1.0, 2.0)}
    noisy = GumbelNoise([seed_of([i], seed=0, number=0) for i in range(DRAWS)], temperature)(
        torch.zeros(DRAWS, 1, dtype=torch.long), logits.expand(DRAWS, -1)
    )
    found = np.bincount(noisy.argmax(-1).numpy(), minlength=4) / DRAWS
    assert np.abs(found - expected[temperature]).max() <= HOEFFDING
    others = [np.abs(p - expected[temperature]).max() for t, p in expected.items() if t != temperature]
    assert min(others) > 2 * HOEFFDING


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    made = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0, **sizes)).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.3)
    return made


class Words:
    """A tokenizer whose texts are the numbers of the tokens."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, tokens))


def examined(model: Any, batch: int, probes: Any = None, **leak: Any) -> Examined:
    evaluation = EvaluationConfig(batch=batch, answer_tokens=NEW_TOKENS, leak=LeakConfig(**leak))
    settings: Any = SimpleNamespace(seed=0, corpus=None, evaluation=evaluation)
    return Examined(model, Words(), probes, settings)


def test_an_answer_hangs_on_prompt_number_and_seed_alone(model: Any) -> None:
    said = examined(model, 6).sampled(PROMPTS, NEW_TOKENS, Drawing(1.0, 0))
    assert examined(model, 1).sampled(PROMPTS, NEW_TOKENS, Drawing(1.0, 0)) == said
    assert examined(model, 4).sampled(PROMPTS[::-1], NEW_TOKENS, Drawing(1.0, 0)) == said[::-1]
    for number, seed in ((1, 0), (0, 1)):
        assert examined(model, 6).sampled(PROMPTS, NEW_TOKENS, Drawing(1.0, seed, number)) != said
    cold = examined(model, 6).sampled(PROMPTS, NEW_TOKENS, Drawing(1e-6, 0))
    assert cold == examined(model, 6).continuations(PROMPTS, NEW_TOKENS)


def test_a_leak_is_counted_by_hand_and_rises_with_k(model: Any) -> None:
    """The true answers are what one draw said, so that each question leaks once in 16 at least."""
    truths = examined(model, 6).sampled(PROMPTS, NEW_TOKENS, Drawing(1.0, 0, 3))
    probes = SimpleNamespace(forget_prompts=PROMPTS, forget_answers=truths, rouge_tokenizer="ascii")
    own = examined(model, 6, probes, threshold=1.0)
    asked = [metric for metric in METRICS if int(metric.name.rpartition("_")[2]) <= 16]
    found = {metric.name: metric.measure(own, own.probes, own.settings) for metric in asked}
    values = [m.value for m in found.values()]
    assert values == sorted(values)
    assert found["leak_at_16"].value == 1.0
    counts = [
        sum(
            rouge_recalls([truth], own.sampled(PROMPTS, NEW_TOKENS, Drawing(1.0, 0, j))[i : i + 1]) == [1.0]
            for j in range(16)
        )
        for i, truth in enumerate(truths)
    ]
    assert found["leak_at_1"].items == tuple(leak_estimate(16, c, 1) for c in counts)


def test_draws_from_the_likeliest_tokens_are_of_no_other() -> None:
    """The two likeliest of four, in the shares that they have of each other."""
    logits = torch.tensor([1.0, 0.0, -0.5, 2.0])
    seeds = [seed_of([i], seed=0, number=0) for i in range(DRAWS)]
    noisy = GumbelNoise(seeds, 1.0, most_likely=2)(torch.zeros(DRAWS, 1, dtype=torch.long), logits.expand(DRAWS, -1))
    found = np.bincount(noisy.argmax(-1).numpy(), minlength=4) / DRAWS
    share = 1 / (1 + math.exp(-1.0))
    assert found[[1, 2]].tolist() == [0, 0]
    assert abs(found[3] - share) <= HOEFFDING


def test_m1_sampled_scores_continuations_that_are_drawn(model: Any) -> None:
    """A truth that is what was drawn scores 100, and 0 where it shares no word; greedy continuations are others."""
    own = examined(model, 6)
    drawn = own.sampled_tokens(PROMPTS, NEW_TOKENS, Drawing(0.9, 0, most_likely=50))
    assert drawn != own.continuation_tokens(PROMPTS, NEW_TOKENS)
    probes: Any = SimpleNamespace(
        verbatim_prompts=PROMPTS,
        verbatim_tokens=drawn,
        verbatim_truths=[*map(own.decode, drawn[:-1]), "nothing"],
        rouge_tokenizer="ascii",
    )
    measured = metric_named("M1_sampled").measure(own, probes, own.settings)
    assert measured.items == (100.0,) * (len(PROMPTS) - 1) + (0.0,)

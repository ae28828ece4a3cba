"""Greedy answers do not depend on whether the common beginning of the prompts is computed once or for each of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="generation needs unforgotten[experiments]")

from transformers import AutoConfig, AutoModelForCausalLM

from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.generation import (
    LEAST_SHARED,
    REUSING,
    beginning,
    generate,
    overruled,
    prompt_batches,
    shared_length,
)

VOCABULARY, NEW_TOKENS, BATCH = 64, 8, 3
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1)
ROUNDING = 4 * 2.0**-11.5  # 4 sqrt(eps) of float32, plain agreement, relative to the largest logit
BASE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**BASE, "num_key_value_heads": 2, "max_position_embeddings": 128}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neox": {**BASE, "max_position_embeddings": 128},
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
}


def micro(model_type: str, attention: str = "eager", **more: Any) -> Any:
    """A model whose answers hang on all that it reads: its matrices are larger than a fresh model's."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        **(SETTINGS.get(model_type, LLAMA) | more),
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.3)
    return model


def prompts(shared: int = 24, count: int = 7) -> list[list[int]]:
    """Prompts with a common beginning and 1 to 7 tokens of their own, the first of which differ."""
    draw = torch.Generator().manual_seed(1)
    common = torch.randint(3, VOCABULARY, (shared,), generator=draw).tolist()
    tails = [torch.randint(3, VOCABULARY, (i,), generator=draw).tolist() for i in range(count)]
    return [[*common, 3 + i, *tail] for i, tail in enumerate(tails)]


def whole(model: Any, rows: list[list[int]]) -> tuple[list[list[int]], Any]:
    """The oracle: one prompt at a time, token by token, without a cache; and the logits of every step."""
    said, logits = [], []
    for row in rows:
        ids, steps = list(row), []
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                steps.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(steps[-1].argmax()))
        said.append(ids[len(row) :])
        logits.append(torch.stack(steps))
    return said, torch.stack(logits)


def first_logits(model: Any, batches: Any) -> Any:
    """The logits after each prompt, as `generate` makes its first token."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    found = [model.generate(**b._asdict(), generation_config=settings).logits[0] for b in batches]
    return torch.cat(found)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", sorted(REUSING))
def test_answers_are_those_of_whole_prompts(model_type: str, attention: str) -> None:
    """A tie within rounding may fall either way; up to it, answers agree. There are few ties."""
    model, rows = micro(model_type, attention), prompts()
    said, logits = whole(model, rows)
    batches = list(prompt_batches(model, rows, 0, BATCH))
    assert all(b.past_key_values is not None for b in batches)
    tolerance = ROUNDING * float(logits.abs().max())
    assert float((first_logits(model, batches) - logits[:, 0]).abs().max()) <= tolerance
    best = logits.topk(2).values
    clear = (best[..., 0] - best[..., 1] > 2 * tolerance).long().cumprod(-1).sum(-1).tolist()
    answers = generate(model, rows, TOKENIZER, NEW_TOKENS, BATCH)
    for answer, expected, n in zip(answers, said, clear, strict=True):
        end = expected.index(1) if 1 in expected else NEW_TOKENS
        assert answer[:n] == expected[: min(n, end)]
    assert sum(clear) > len(rows) * NEW_TOKENS / 2


@pytest.mark.parametrize("model_type", sorted(REUSING))
def test_the_tolerance_sees_padding_that_is_read_and_a_position_that_is_missed(model_type: str) -> None:
    model, rows = micro(model_type), prompts()
    expected = whole(model, rows)[1][:, 0]
    tolerance = ROUNDING * float(expected.abs().max())
    padded = torch.tensor([len(row) < max(map(len, rows)) for row in rows])
    for wrong in ("read", "missed"):
        (batch,) = prompt_batches(model, rows, 0, len(rows))
        mask = batch.attention_mask.clone()
        if wrong == "read":
            mask[:] = 1
        else:
            mask[padded, 0] = 0  # the first token is neither read nor counted
        apart = first_logits(model, [batch._replace(attention_mask=mask)]) - expected
        assert float(apart[padded].abs().amax(-1).min()) > tolerance


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("mistral", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
)
def test_a_model_that_may_read_columns_gets_whole_prompts(model_type: str, more: dict[str, Any]) -> None:
    model, rows = micro(model_type, **more), prompts()
    assert beginning(model, rows[0][:24]) is None
    for start, batch in zip((0, 3, 6), prompt_batches(model, rows, 0, BATCH), strict=True):
        plain = pad(rows[start : start + BATCH], 0, left=True)
        assert batch.past_key_values is None
        assert torch.equal(batch.input_ids, plain.input_ids)
        assert torch.equal(batch.attention_mask, plain.attention_mask)


def test_what_is_shared_is_long_enough_and_leaves_each_prompt_a_token() -> None:
    common = list(range(LEAST_SHARED))
    assert shared_length([[*common, 1, 5], [*common, 2]]) == LEAST_SHARED
    assert shared_length([[*common, 1], common]) == 0  # of the second, a token less can be shared
    assert shared_length([[*common, 1], [*common, 1]]) == LEAST_SHARED
    assert shared_length([[9, *common, 1], [*common, 2]]) == 0
    assert shared_length([[*common, 1]]) == 0
    assert shared_length([]) == 0


def test_no_prompts_have_no_answers() -> None:
    assert generate(micro("llama"), [], TOKENIZER, NEW_TOKENS, BATCH) == []


LEAKING = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0, "num_beams": 2}


def test_a_checkpoints_own_settings_leave_answers_alone() -> None:
    """transformers 5 fills what `generate` is not told from the checkpoint: penalties reached M1, M2 and M4."""
    rows = prompts()
    plain = generate(micro("llama"), rows, TOKENIZER, NEW_TOKENS, BATCH)
    assert any(len(set(answer)) < len(answer) for answer in plain)  # or no penalty on repetition would show
    model = micro("llama")
    for name, value in LEAKING.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    assert generate(model, rows, TOKENIZER, NEW_TOKENS, BATCH) == plain
    assert model.generation_config is own


def test_settings_that_would_change_an_answer_are_named() -> None:
    said = {"bos_token_id": 1, "use_cache": False, "top_p": 1.0, "transformers_version": "5.0", "top_k": 0}
    assert overruled({**said, **LEAKING}) == {**LEAKING, "top_k": 0}
    assert overruled({"temperature": None, "hidden_size": 8}) == {}


def test_a_pad_token_that_the_model_lacks_is_not_fed_to_it() -> None:
    model, rows = micro("llama"), prompts()
    beyond = SimpleNamespace(pad_token_id=VOCABULARY, eos_token_id=1)
    assert generate(model, rows, beyond, NEW_TOKENS, BATCH) == generate(model, rows, TOKENIZER, NEW_TOKENS, BATCH)


def test_a_negative_pad_token_of_early_llama_configurations_counts_as_0() -> None:
    assert torch.equal(pad([[3, 4], [5]], -1).input_ids, torch.tensor([[3, 4], [5, 0]]))

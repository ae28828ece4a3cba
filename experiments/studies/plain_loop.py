"""The loop as released unlearning code has it: the reference model runs in every step, and every text is measured alone.

A yardstick for `loop_cost.py`, and written for nothing else: no cache, no batches of answers, no shared beginnings. What it
computes is what NPO with KLR, M1, M2, M4, M3's scores and the losses are in this package; only the order of sums may differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from unforgotten.experiments.methods.settings import Settings
from unforgotten.experiments.metrics.knowledge import cut_answer
from unforgotten.experiments.metrics.membership import min_k
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.experiments.models.batches import Batch


def unlearn(
    model: PreTrainedModel, forget: Iterator[Batch], retain: Iterator[Batch], settings: Settings
) -> PreTrainedModel:
    """Return the model after `settings.max_steps` steps of NPO with KLR, float32; it is changed in place.

    Args:
        model: target, float32.
        forget: batches of the text to forget.
        retain: batches of the text to keep.
        settings: settings, of which `lr`, `alpha`, `beta`, `max_grad_norm` and `max_steps` count.
    """
    reference = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    for _ in range(settings.max_steps):
        forgotten, kept = next(forget), next(retain)
        with torch.no_grad():
            before, wanted = _sequence_log_probs(reference, forgotten), _log_probs(reference, kept)
        ratio = _sequence_log_probs(model, forgotten) - before
        loss = -(2.0 / settings.beta) * functional.logsigmoid(-settings.beta * ratio).mean()
        divergence = (wanted.exp() * (wanted - _log_probs(model, kept))).sum(-1)
        real = kept.scored[:, 1:].float()
        loss = loss + settings.alpha * (divergence * real).sum() / real.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return model


def _log_probs(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[:, :-1].float().log_softmax(-1)


def _sequence_log_probs(model: PreTrainedModel, batch: Batch) -> Tensor:
    labels, real = batch.input_ids[:, 1:, None], batch.scored[:, 1:]
    return (_log_probs(model, batch).gather(-1, labels)[..., 0] * real).sum(-1)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, tokenizer: Any, probes: Probes, *, answer_tokens: int, share: float
) -> Mapping[str, list[float]]:
    """Return the items of M1, M2, M4 and the losses, and the Min-K % scores of M3 as "auc"; one text after the other.

    Args:
        model: model.
        tokenizer: its tokenizer.
        probes: prompts, answers and documents.
        answer_tokens: longest answer of M2 and M4.
        share: share of least likely tokens in Min-K %.
    """
    model.eval()
    longest = max(map(len, probes.verbatim_tokens))

    def said(prompts: Sequence[Sequence[int]], new_tokens: int) -> Iterator[list[int]]:
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            output = model.generate(  # type: ignore[operator]  # transformers types it as a Tensor
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=tokenizer.eos_token_id,
            )
            yield output[0, len(prompt) :].tolist()

    def decoded(tokens: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def scores(documents: Sequence[Sequence[int]]) -> list[Tensor]:
        return [_token_scores(model, document) for document in documents]

    def knowledge(prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> list[float]:
        given = [cut_answer(decoded(tokens)) for tokens in said(prompts, answer_tokens)]
        return rouge_items(answers, given, probes.rouge_tokenizer)

    pairs = zip(said(probes.verbatim_prompts, longest), probes.verbatim_tokens, strict=True)
    copied = [decoded(tokens[: len(truth)]) for tokens, truth in pairs]
    passages, holdout, retained = (scores(texts) for texts in (probes.passages, probes.holdout, probes.retained))
    return {
        "M1": rouge_items(probes.verbatim_truths, copied, probes.rouge_tokenizer),
        "M2": knowledge(probes.forget_prompts, probes.forget_answers),
        "M4": knowledge(probes.retain_prompts, probes.retain_answers),
        "forget_loss": [-float(text.double().mean()) for text in passages],
        "retain_loss": [-float(text.double().mean()) for text in retained],
        "auc": min_k([*passages, *holdout], share),
    }


def _token_scores(model: PreTrainedModel, document: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(document)])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]

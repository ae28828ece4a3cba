"""Texts are scored once, and losses and Min-K % are those of a pass of their own over each of them."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from unforgotten.experiments.data.corpus import read_fiction
from unforgotten.experiments.evaluation import DECOMPOSED
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.losses import loss_items
from unforgotten.experiments.metrics.membership import min_k
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.scoring import SCORED_TOGETHER, token_scores
from unforgotten.experiments.models.shell import Shell, state_of

ROUNDING = 4 * 2.0**-11.5  # 4 sqrt(eps) of float32: plain agreement, relative
SHARE = 0.4


@pytest.fixture(scope="module")
def meter(micro_pair: Path) -> Meter:
    config = load_config(str(Path(__file__).parents[2] / "micro.yaml"))
    tokenizer = load_tokenizer(micro_pair / "models/target")
    probes = make_probes(read_fiction(micro_pair / "corpus"), tokenizer, config)
    return Meter(Shell(load_model(micro_pair / "models/unlearned"), tokenizer), probes, config)


def documents(meter: Meter) -> list[list[int]]:
    """More than two batches, of eleven lengths in no order."""
    texts = [list(text) for text in meter.probes.retain]
    chosen = [texts[i % len(texts)] for i in range(2 * SCORED_TOGETHER + 3)]
    return [text[: 40 - 7 * i % 11] for i, text in enumerate(chosen)]


def formula(model: Any, texts: list[list[int]]) -> list[Any]:
    """The labels picked from log-softmax in float64, all texts in one batch, padded on the right."""
    batch = pad(texts, model.config.pad_token_id)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    log_p = logits[:, :-1].double().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])
    return [row[: len(text) - 1, 0] for row, text in zip(log_p, texts, strict=True)]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_token_scores_are_the_labels_of_log_softmax_in_the_order_given(meter: Meter, batch: int) -> None:
    texts = documents(meter)
    expected = formula(meter.shell.model, texts)
    scores = token_scores(meter.shell.model, texts, batch)
    assert [len(s) for s in scores] == [len(t) - 1 for t in texts]
    for score, log_p in zip(scores, expected, strict=True):
        assert float((score / log_p - 1).abs().max()) <= ROUNDING
    alike = [(a, b) for a, b in combinations(scores, 2) if len(a) == len(b)]
    assert alike  # and were two of them swapped, it would be seen
    assert min(float((a / b - 1).abs().max()) for a, b in alike) > 2 * ROUNDING


def test_no_pass_reads_more_than_its_share_of_documents(meter: Meter) -> None:
    seen: list[int] = []
    hook = meter.shell.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    texts = documents(meter)
    token_scores(meter.shell.model, texts, 64)
    assert sum(seen) == len(texts)
    assert max(seen) == SCORED_TOGETHER
    seen.clear()
    token_scores(meter.shell.model, texts, 2)
    assert max(seen) == 2
    hook.remove()


def test_losses_and_min_k_are_read_from_the_same_scores(meter: Meter) -> None:
    texts = documents(meter)
    scores, expected = token_scores(meter.shell.model, texts, 64), formula(meter.shell.model, texts)
    means = [-float(x.mean()) for x in expected]
    assert loss_items(scores) == pytest.approx(means, rel=ROUNDING)
    least = [float(x.sort().values[: max(1, int(SHARE * len(x)))].mean()) for x in expected]
    assert min_k(scores, SHARE) == pytest.approx(least, rel=ROUNDING)


def test_each_text_is_scored_once_and_the_retrained_model_leaks_nothing(meter: Meter) -> None:
    """M3 of the retrained model against itself is 0, not a rounding: both ways give the same scores."""
    state, probes = state_of(meter.shell.model), meter.probes
    passes: list[int] = []
    hook = meter.shell.model.register_forward_pre_hook(
        lambda _, __, given: passes.append(len(given["input_ids"])) if not given["use_cache"] else None,
        with_kwargs=True,
    )
    scores = meter.membership(state)
    passes.clear()
    rows = dataclasses.replace(meter, retrained_scores=scores).measure(state)
    assert sum(passes) == len(probes.passages) + len(probes.retain) + len(probes.holdout)
    hook.remove()
    assert rows["auc"].items == tuple(scores)
    assert rows["M3"].value == 0
    assert (rows["forget_loss"].n, rows["retain_loss"].n) == (len(probes.passages), len(probes.retain))
    again = meter.measure(state, DECOMPOSED)
    assert again == {name: rows[name] for name in again}

"""The output leg of an audit: target, unlearned model and both quantized, on given texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Step, counted, ignore
from unforgotten.audit.verdict.evidence import Items as FourItems
from unforgotten.audit.verdict.evidence import mean_of, recovery_row
from unforgotten.audit.verdict.legs import Effects, OutputFormat, OutputLeg, RecoveryRow
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.evaluation import hybrid_states
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.metrics.likelihood import METRICS, Items, batches, measure
from unforgotten.experiments.models.batches import Batch
from unforgotten.theory.models.decomposition import lost_effect

FULL = ("target", "unlearned")
PAIRS = (
    ("unlearned", "Q(unlearned)"),
    ("Q(target)", "Q(unlearned)"),
    ("target", "Q(target)"),
    ("target", "Q(unlearned)"),
)
LEAST_TEXTS = 2
LEAST_TOKENS = 2


def output_leg(target: Path, unlearned: Path, formats: Sequence[str], texts: Path, *, step: Step = ignore) -> OutputLeg:
    """Likelihoods of the texts under six models a format, distances between them, T14, T15 and T16.

    Up to ten float32 copies of the model are in memory: for a laptop, models of up to about half a billion weights. A text
    longer than the context is cut and counted.

    Args:
        target: directory of the model before unlearning.
        unlearned: directory of the model after unlearning.
        formats: names of formats, at least one.
        texts: file of texts, as `read_texts` reads it.
        step: callback that is told which format comes next.

    Raises:
        ValueError: the input breaks a rule; one line.
    """
    words = read_texts(texts)
    pair = open_model_pair(target, unlearned)
    encoded, cut = encode_texts(words, pair, str(texts))
    return measure_output(pair, formats, encoded, name=str(texts), cut=cut, step=step)


def encode_texts(texts: Sequence[str], pair: Pair, name: str) -> tuple[list[list[int]], int]:
    """Token ids between BOS and EOS, where there are such, at most a context long; and how many texts were cut.

    Raises:
        ValueError: there are fewer than two texts, or one has nothing to predict.
    """
    if len(texts) < LEAST_TEXTS:
        raise ValueError(f"{name}: must hold at least {LEAST_TEXTS} texts, got {len(texts)}")
    tokenizer = pair.tokenizer
    start, end = ([x] if x is not None else [] for x in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    rows = [start + tokenizer.encode(t, add_special_tokens=False) + end for t in texts]
    for i, row in enumerate(rows, 1):
        if len(row) < LEAST_TOKENS:
            raise ValueError(f"{name}: text {i}: must have at least {LEAST_TOKENS} tokens, got {len(row)}")
    return [row[: pair.context] for row in rows], sum(len(row) > pair.context for row in rows)


def measure_output(
    pair: Pair, formats: Sequence[str], encoded: Sequence[Sequence[int]], *, name: str, cut: int, step: Step = ignore
) -> OutputLeg:
    """Measure the output leg of a loaded pair of models on encoded texts."""
    pad_id = getattr(pair.model.config, "pad_token_id", None) or 0
    texts = batches(encoded, pair.model.config.vocab_size, pad_id)
    shells = {key: copy.deepcopy(pair.model) for key in ("target", "unlearned", "Q(target)")}
    shells["Q(unlearned)"] = pair.model
    shells["target"].load_state_dict(pair.target)
    shells["unlearned"].load_state_dict(pair.unlearned)
    begin = counted(step, 1 + len(formats))
    begin("full precision")
    items, distances = measure({k: shells[k] for k in FULL}, (FULL,), texts)
    rows = []
    for format_name in formats:
        begin(format_name)
        rows.append(_format(pair, shells, format_name, texts))
    begin("")
    notes = [f"{cut} of {len(encoded)} texts are longer than the context and were cut."] if cut else []
    return OutputLeg(
        texts=name,
        count=len(encoded),
        tokens=sum(len(row) - 1 for row in encoded),
        cut=cut,
        losses={k: mean_of(items[k]["loss"]) for k in FULL},
        distances=distances,
        formats=rows,
        notes=notes,
    )


def _format(
    pair: Pair, shells: Mapping[str, PreTrainedModel], format_name: str, texts: Sequence[Batch]
) -> OutputFormat:
    q_target, q_unlearned = (pair.quantized(s, format_name) for s in (pair.target, pair.unlearned))
    shells["Q(target)"].load_state_dict(q_target)
    shells["Q(unlearned)"].load_state_dict(q_unlearned)
    items, distances = measure(shells, PAIRS, texts)
    mixed = hybrid_states(pair.names, pair.target, pair.unlearned, q_target, q_unlearned)
    for key, state in mixed.items():
        shells["Q(unlearned)"].load_state_dict(state)
        items |= measure({key: shells["Q(unlearned)"]}, (), texts)[0]
    return OutputFormat(
        format=format_name,
        losses={k: mean_of(items[k]["loss"]) for k in items if k not in FULL},
        distances=distances,
        recoveries=[recovery(metric, items) for metric in METRICS],
        effects=[effects(metric, items) for metric in METRICS],
    )


def recovery(metric: str, items: Mapping[str, Mapping[str, Any]]) -> RecoveryRow:
    """T16 of one metric from the items of the four models."""
    names = ("target", "unlearned", "Q(target)", "Q(unlearned)")
    four = FourItems(*(items[name][metric] for name in names))
    return recovery_row(metric, four, loss=metric.endswith("loss"))


def effects(metric: str, items: Mapping[str, Items]) -> Effects:
    """T14 of one metric: linear in the items, so each effect has a standard error."""
    names = ("target", "unlearned", "Q(target)", "Q(unlearned)", "target+D", "Q(target)+delta")
    found = [
        lost_effect(w=w, w_new=u, q=q, q_new=qu, w_plus_d=d, q_plus_delta=qd)
        for w, u, q, qu, d, qd in zip(*(items[name][metric] for name in names), strict=True)
    ]
    return Effects(
        metric=metric,
        lost=mean_of([e.total for e in found]),
        gating=mean_of([e.gating for e in found]),
        base_shift=mean_of([e.base_shift for e in found]),
    )

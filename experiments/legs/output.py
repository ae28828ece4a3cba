"""The output leg of an audit: target, unlearned model and both quantized, on given texts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Step, counted, ignore
from unforgotten.audit.verdict.asked import items_sha256
from unforgotten.audit.verdict.evidence import mean_of
from unforgotten.audit.verdict.legs import DEPLOYED, OutputFormat, OutputLeg
from unforgotten.experiments.data.texts import different, left_out_as_equal, read_texts
from unforgotten.experiments.legs.benchmark import spelled_out
from unforgotten.experiments.legs.dtypes import dtype_named
from unforgotten.experiments.legs.functional import functional_leg
from unforgotten.experiments.legs.likelihood import LIKELIHOODS, batches, measure
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.legs.ran import ran_of
from unforgotten.experiments.legs.real_runtime import Sources, load_real, ran_real
from unforgotten.experiments.metrics.effects import effects, hybrid_states, recovery
from unforgotten.experiments.models.batches import Batch
from unforgotten.experiments.models.memory import Copies, check_memory
from unforgotten.experiments.models.special_tokens import count_spelled_out, end_tokens, started
from unforgotten.experiments.models.states import fill

FULL = ("target", "unlearned")
PAIRS = (
    ("unlearned", "Q(unlearned)"),
    ("Q(target)", "Q(unlearned)"),
    ("target", "Q(target)"),
    ("target", "Q(unlearned)"),
)
LEAST_TEXTS = 2
COPIES = Copies(models=4, parts=0.2)
"""What is in memory at most: the models whose outputs are compared token by token."""
LEAST_TOKENS = 2


def output_leg(
    target: Path,
    unlearned: Path,
    formats: Sequence[str],
    texts: Path,
    *,
    step: Step = ignore,
    device: str = "cpu",
    dtype: str = "float32",
    real: Sources | None = None,
) -> OutputLeg:
    """Measure likelihoods of the texts under six models a format, distances between them, T14, T15 and T16.

    Four models are in memory: in float32, on a laptop, of up to about a billion weights. A text
    longer than the context is cut and counted. Equal texts are one.

    Args:
        target: directory of the model before unlearning.
        unlearned: directory of the model after unlearning.
        formats: names of formats, at least one.
        texts: file of texts, as `read_texts` reads it.
        step: callback that is told which format comes next.
        device: device that models run on, as `--device` names it.
        dtype: dtype that they run in, as `--dtype` names it.
        real: directories of the quantized target and unlearned model that their own library runs too; None for none.

    Raises:
        ValueError: the input breaks a rule; one line.
    """
    given = read_texts(texts)
    words = different(given)
    if len(words) < LEAST_TEXTS <= len(given):
        raise ValueError(f"{texts}: must hold at least {LEAST_TEXTS} different texts, got one, {len(given)} times")
    kind = dtype_named(dtype, (target, unlearned))
    if device == "cpu":
        check_memory(target, COPIES, str(kind).removeprefix("torch."))
    pair = open_model_pair(target, unlearned, device, kind)
    pair.shell.check(formats)
    encoded, cut = encode_texts(words, pair, str(texts))
    left_out = len(words) - len(encoded)
    leg = measure_output(pair, formats, encoded, name=str(texts), cut=cut, left_out=left_out, step=step, real=real)
    leg["notes"] = [*left_out_as_equal(len(given), len(words), "texts"), *leg["notes"]]
    return leg


def encode_texts(texts: Sequence[str], pair: Pair, name: str) -> tuple[list[list[int]], int]:
    """Return token ids between start and end tokens, at most a context long; and how many texts were cut.

    A text of which no token has one before it is left out: nothing of it can be predicted.

    Raises:
        ValueError: there are fewer than two texts with something to predict.
    """
    tokenizer = pair.shell.tokenizer
    end = end_tokens(tokenizer)
    rows = [started(t, tokenizer) + end for t in texts]
    long_enough = [row for row in rows if len(row) >= LEAST_TOKENS]
    if len(long_enough) < LEAST_TEXTS:
        rule = f"must hold at least {LEAST_TEXTS} texts of {LEAST_TOKENS} tokens or more"
        raise ValueError(f"{name}: {rule}, got {len(long_enough)} of {len(texts)}")
    context = pair.shell.context
    return [row[:context] for row in long_enough], sum(len(row) > context for row in long_enough)


def measure_output(
    pair: Pair,
    formats: Sequence[str],
    encoded: Sequence[Sequence[int]],
    *,
    name: str,
    cut: int,
    left_out: int = 0,
    step: Step = ignore,
    real: Sources | None = None,
) -> OutputLeg:
    """Return the leg of a loaded pair."""
    pad_id = getattr(pair.shell.model.config, "pad_token_id", None) or 0
    texts = batches(encoded, pair.shell.model.config.vocab_size, pad_id)
    shells = {key: copy.deepcopy(pair.shell.model) for key in ("target", "unlearned", "Q(target)")}
    shells["Q(unlearned)"] = pair.shell.model
    fill(shells["target"], pair.target)
    fill(shells["unlearned"], pair.unlearned)
    begin = counted(step, 2 + len(formats) + (real is not None))
    begin("full precision")
    items, distances = measure({k: shells[k] for k in FULL}, (FULL,), texts)
    rows = []
    for format_name in formats:
        begin(format_name)
        rows.append(_format(pair, shells, format_name, texts))
    if real is not None:
        begin(DEPLOYED)
        rows.append(_real(pair, shells, real, texts))
    begin("functional gain")
    functional = functional_leg(pair, formats, encoded)
    ran = ran_of(pair, formats)
    begin("")
    notes = [f"{cut} of {len(encoded)} texts are longer than the context and were cut."] if cut else []
    if left_out:
        notes.append(f"{left_out} texts have fewer than {LEAST_TOKENS} tokens and were left out.")
    spelled = count_spelled_out(encoded, pair.shell.tokenizer)
    if spelled:
        notes.append(spelled_out(spelled))
    leg = OutputLeg(
        texts=name,
        count=len(encoded),
        tokens=sum(len(row) - 1 for row in encoded),
        cut=cut,
        losses={k: mean_of(items[k]["loss"]) for k in FULL},
        distances=distances,
        formats=rows,
        notes=notes,
        ran=ran,
        items_sha256=items_sha256({"texts": [list(map(int, row)) for row in encoded]}),
    )
    if functional is not None:
        leg["functional"] = functional
    return leg


def _real(pair: Pair, shells: Mapping[str, PreTrainedModel], real: Sources, texts: Sequence[Batch]) -> OutputFormat:
    """Return the row of the quantized models as their library runs them; without mixed models, which it could not run."""
    names = ("Q(target)", "Q(unlearned)")
    models = {name: load_real(source, pair.shell.model) for name, source in zip(names, real, strict=True)}
    items, distances = measure({**{key: shells[key] for key in FULL}, **models}, PAIRS, texts)
    return OutputFormat(
        format=DEPLOYED,
        losses={name: mean_of(items[name]["loss"]) for name in names},
        distances=distances,
        recoveries=[recovery(metric, items) for metric in LIKELIHOODS],
        effects=[],
        ran=ran_real(models["Q(unlearned)"], real[1]),
    )


def _format(
    pair: Pair, shells: Mapping[str, PreTrainedModel], format_name: str, texts: Sequence[Batch]
) -> OutputFormat:
    q_target, q_unlearned = (pair.shell.quantized(s, format_name) for s in (pair.target, pair.unlearned))
    fill(shells["Q(target)"], q_target)
    fill(shells["Q(unlearned)"], q_unlearned)
    items, distances = measure(shells, PAIRS, texts)
    mixed = hybrid_states(pair.shell.touched(format_name), pair.target, pair.unlearned, q_target, q_unlearned)
    for key, state in mixed.items():
        fill(shells["Q(unlearned)"], state)
        items |= measure({key: shells["Q(unlearned)"]}, (), texts)[0]
    return OutputFormat(
        format=format_name,
        losses={k: mean_of(items[k]["loss"]) for k in items if k not in FULL},
        distances=distances,
        recoveries=[recovery(metric, items) for metric in LIKELIHOODS],
        effects=[effects(metric, items).as_row(metric) for metric in LIKELIHOODS],
    )

"""The plan of a run: model, data and stages, as an object and as lines.

In go a configuration and the rates of this machine; nothing is trained, fetched or kept:

    plan = make_plan(load_config("muse-news"), measure_rates(2))
    as_object(plan)["seconds"], lines(plan)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.models.memory import free_bytes
from unforgotten.experiments.plan.rates import Rates
from unforgotten.experiments.plan.shapes import Shape, shape_of
from unforgotten.experiments.plan.stages import Planner, Work
from unforgotten.experiments.plan.texts import Texts, texts_of
from unforgotten.records.depths import wanted, words

GIB = 2**30
UNITS = ((86400 * 365.0, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))

CPU = "cpu"


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        config: configuration.
        shape: sizes of its model; None where they are not known.
        texts: lengths of its text; None where they are not known.
        works: work by stage.
        rates: operations a second.
        device: where all of it runs.
        free: bytes of memory that are free here; None where the system does not say.
    """

    config: RunConfig
    shape: Shape | None
    texts: Texts | None
    works: list[Work]
    rates: Rates
    device: str
    free: int | None

    def seconds(self, work: Work) -> float | None:
        """Return the time of a stage at the rates of the plan; None where the model or the text is not known, or the rates.

        Rates are measured on the processor, and say nothing of another device.
        """
        if work.operations is None or self.texts is None or self.device != CPU:
            return None
        generated = max(work.generated / self.rates.products, work.generated / work.together / self.rates.generation)
        return work.operations / self.rates.products + generated


def make_plan(config: RunConfig, rates: Rates) -> Plan:
    """Return the plan of a run. Nothing is trained, fetched or kept.

    Raises:
        ValueError: what is here is not in its layout, or no model.
    """
    shape, texts = shape_of(config), texts_of(config)
    device = str(device_of(config.compute)) if config.compute.device in ("auto", CPU) else config.compute.device
    free = free_bytes() if device == CPU else None
    return Plan(config, shape, texts, list(Planner(config, shape, texts).works()), rates, device, free)


def as_object(plan: Plan) -> dict[str, Any]:
    """Return the plan for JSON: bytes, operations and seconds."""
    texts = plan.texts
    data = None
    if texts is not None:
        parts = {name: {"documents": len(n), "tokens": sum(n)} for name, n in texts.parts.items()}
        data = {"origin": texts.origin, "counted": texts.counted, "parts": parts}
    stages = []
    for work in plan.works:
        total = None if work.memory is None else {**asdict(work.memory), "total": work.memory.total}
        stages.append({**asdict(work), "memory": total, "seconds": plan.seconds(work)})
    return {
        "model": None if plan.shape is None else asdict(plan.shape),
        "data": data,
        "device": plan.device,
        "free": plan.free,
        "rates": plan.rates._asdict(),
        "works": stages,
        "disk": _total([work.disk for work in plan.works]),
        "seconds": _total([plan.seconds(work) for work in plan.works]),
    }


def lines(plan: Plan) -> list[str]:
    """Return the plan as lines of text."""
    return [*_heads(plan), *_table(plan), *_feet(plan)]


def _heads(plan: Plan) -> Iterator[str]:
    shape, texts, config = plan.shape, plan.texts, plan.config
    if shape is None:
        yield "model   not on this machine and of no published size: what depends on it is left out"
    else:
        yield f"model   {shape.title}: {shape.parameters:,} weights, {shape.layers} layers ({shape.source})"
    if texts is None:
        yield "data    not on this machine and of no published size: what depends on it is left out"
    else:
        yield f"data    {texts.origin}; tokens: {texts.counted}"
        for name, lengths in texts.parts.items():
            yield f"        {name}: {len(lengths):,} of {sum(lengths):,} tokens, the longest {max(lengths, default=0):,}"
    yield f"arms    {', '.join(config.methods)} in {', '.join(config.storages)}; formats: {', '.join(config.formats)}"
    if depths := wanted(config.unlearning.model_dump()):
        yield f"states  of each arm at {'; '.join(map(words, depths))}"
    yield ""


def _table(plan: Plan) -> list[str]:
    header = ("stage", "steps", "tokens", "memory", "weights", "gradients", "moments", "reference", "activations")
    rows: list[tuple[str, ...]] = [(*header, "disk", "time")]
    for work in plan.works:
        m = work.memory
        sizes = (m.total, m.parameters, m.gradients, m.moments, m.reference, m.activations) if m else (None,) * 6
        cells = (*map(size_text, sizes), size_text(work.disk), time_text(plan.seconds(work)))
        rows.append(
            (work.stage, f"{work.steps:,}" if work.steps else "", f"{work.tokens:,}" if work.tokens else "", *cells)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _feet(plan: Plan) -> Iterator[str]:
    yield ""
    most = max((work.memory.total for work in plan.works if work.memory is not None), default=None)
    free = "" if plan.free is None else f", of which {size_text(plan.free)} are free here"
    yield f"memory  {size_text(most) or 'unknown'} at most on {plan.device}{free}; activations are an estimate"
    yield f"disk    {size_text(_total([work.disk for work in plan.works])) or 'unknown'}"
    if plan.device != CPU:
        yield f"time    unknown: rates are measured on this processor, and the run is on {plan.device}"
        return
    taken = time_text(_total([plan.seconds(work) for work in plan.works])) or "unknown"
    products, generation = (rate / 1e9 for rate in plan.rates)
    yield f"time    {taken} at {products:,.1f} GFLOP/s in products of matrices and {generation:,.1f} in new tokens of one prompt,"
    yield "        measured here in float32; steps are the most that a rule allows, and quantizers are not counted"


def _total(values: Sequence[Any]) -> Any:
    """Return the sum; None where one is not known."""
    return None if any(value is None for value in values) else sum(values)


def size_text(size: int | None) -> str:
    """Return bytes in words; nothing for None."""
    if size is None:
        return ""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB" if size else "0"


def time_text(seconds: float | None) -> str:
    """Return a time in words; nothing for None."""
    if seconds is None:
        return ""
    unit, name = next(((u, n) for u, n in UNITS if seconds >= u), UNITS[-1])
    return f"{seconds / unit:,.1f} {name}"

"""`reports/at-7b.md`: what the paper's own setting takes on GPUs, counted from its profiles and multiplied by assumed rates.

`python -P -m unforgotten.experiments.plan.at_7b reports/at-7b.md` writes it. Nothing is fetched or measured, and the same profiles
give the same text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.plan.plan import GIB, make_plan, size_text
from unforgotten.experiments.plan.rates import Rates
from unforgotten.experiments.plan.stages import Memory, Work
from unforgotten.records.files import write_text

PEAK = 989e12
"""Dense bfloat16 operations a second of an H100 SXM, by its data sheet."""
USED = 0.35
"""Share of it that training of a 7B model reaches; assumed."""
BANDWIDTH = 3.35e12
"""Bytes a second that its memory gives, by its data sheet."""
PRICE = 2.5
"""US dollars an hour of one GPU; assumed."""
GPUS = 8
GPU_MEMORY = 80 * GIB
ASSUMED = Rates(products=USED * PEAK, generation=BANDWIDTH)
"""A new token reads each weight of 2 bytes once, for 2 operations."""
SETTINGS = {
    "compute.device": "cuda",
    "compute.evaluation_dtype": "bfloat16",
    "compute.gradient_checkpointing": True,
    "compute.micro_batch": 1,
}
PROFILES = ("muse-news", "muse-books")


class Cost(NamedTuple):
    """What an arm takes on one GPU, at the assumed rates.

    Attributes:
        arm: method and storage.
        steps: steps of unlearning.
        unlearn: hours of unlearning.
        measure: hours of measuring the model itself and in every format, the mixed models of T14 left out.
        mixed: hours of those.
        state: bytes of weights, gradients and moments, which several GPUs share out.
        reference: bytes that are kept of the target's answers, in the memory of the host.
        activations: bytes that a pass keeps of one document, where each layer keeps its input alone.
    """

    arm: str
    steps: int
    unlearn: float
    measure: float
    mixed: float
    state: int
    reference: int
    activations: int


def hours(work: Work) -> float:
    """Return the hours of a stage on one GPU at the assumed rates.

    Raises:
        ValueError: its sizes are not known.
    """
    if work.operations is None:
        raise ValueError(f"{work.stage}: must have a model and a text of known size, got none")
    return (work.operations / ASSUMED.products + work.generated / work.together / ASSUMED.generation) / 3600


def costs(profile: str) -> list[Cost]:
    """Return what each arm of a profile takes, in its order."""
    config = load_config(profile, settings=SETTINGS)
    plan = make_plan(config, ASSUMED)
    if plan.shape is None or plan.texts is None:
        raise ValueError(f"{profile}: must have a model and a text of known size, got none")
    longest = max(max(plan.texts.parts[name]) for name in ("forget", "retain"))
    kept = 2 * longest * plan.shape.layers * plan.shape.width + 4 * 3 * longest * plan.shape.vocabulary
    found: dict[str, list[Work]] = {}
    for work in plan.works:
        name = work.stage.split(" ")[1]
        if name.startswith("unlearned-"):
            found.setdefault(name.removeprefix("unlearned-"), []).append(work)
    return [_cost(arm, works, kept) for arm, works in found.items()]


def _cost(arm: str, works: Sequence[Work], kept: int) -> Cost:
    by_kind = {kind: [work for work in works if work.stage.startswith(f"{kind} ")] for kind in KINDS}
    (unlearn,) = by_kind["unlearn"]
    memory = unlearn.memory or Memory(0)
    state = memory.parameters + memory.gradients + memory.moments
    again = 4 / 3  # layers are passed forward once more
    return Cost(
        *(arm, unlearn.steps, again * hours(unlearn), sum(map(hours, by_kind["evaluate"]))),
        *(sum(map(hours, by_kind["decompose"])), state, memory.reference, kept),
    )


KINDS = ("unlearn", "evaluate", "decompose")


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# The paper's own setting at 7B: what it takes"
    yield ""
    yield "**Nothing on this page was measured on a GPU**: none was at hand. Operations, tokens and bytes are counted from the profiles, as"
    yield f"`--dry-run` counts them; hours are these over an assumed rate, {USED:.0%} of the {PEAK / 1e12:.0f} TFLOP/s that the data sheet of an H100 SXM"
    yield f"gives for dense bfloat16, and {BANDWIDTH / 1e12:.2f} TB/s of its memory for new tokens; dollars are hours at an assumed {PRICE:.2f} an hour of a GPU."
    yield "Quantizing itself is not counted. Whoever runs the first arm knows the true rate: hours scale with it."
    for profile in PROFILES:
        yield from _profile(profile, costs(profile))
    yield from _commands()


def _profile(profile: str, found: Sequence[Cost]) -> Iterator[str]:
    yield ""
    yield f"## `{profile}`"
    yield ""
    yield "| arm | steps | unlearn, h | measure, h | mixed models, h | weights, gradients, moments | of one document | of the target, on the host |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for cost in found:
        sizes = " | ".join(map(size_text, (cost.state, cost.activations, cost.reference)))
        yield f"| {cost.arm} | {cost.steps:,} | {cost.unlearn:.1f} | {cost.measure:.1f} | {cost.mixed:.1f} | {sizes} |"
    total = sum(cost.unlearn + cost.measure + cost.mixed for cost in found)
    state = max(cost.state + cost.activations for cost in found)
    shared = max(cost.state / GPUS + cost.activations for cost in found)
    fits = "fits" if state <= GPU_MEMORY else "does not fit"
    yield ""
    yield f"One GPU: {total:.0f} h, {total * PRICE:,.0f} dollars; {size_text(state)}, which {fits} into {size_text(GPU_MEMORY)}. {GPUS} GPUs by FSDP: {total / GPUS:.1f} h if"
    yield f"they share it evenly, as many dollars, {size_text(int(shared))} a GPU."


def _commands() -> Iterator[str]:
    settings = " ".join(f"--set {name}={str(value).lower()}" for name, value in SETTINGS.items())
    yield ""
    yield "## Commands"
    yield ""
    yield "```"
    yield f"unforgotten run muse-news --out runs/news {settings}"
    yield f"accelerate launch --config_file experiments/launch/fsdp.yaml -m unforgotten.cli run muse-news --out runs/news {settings}"
    yield "```"
    yield ""
    yield "`--set compute.adamw=paged` keeps the moments where one GPU is short of memory, `--set 'only_methods=[NPO_KLR]'` is one arm, and"
    yield "`--set 'storages=[fp32,bf16]'` adds the arm that the paper has not: the same loss with fp32 masters. What that"
    yield "changes on small models stands [ingredient by ingredient](published/README.md#ingredient-by-ingredient). Before any of it, the public"
    yield "checkpoints' weights, which need no GPU:"
    yield ""
    yield "```"
    yield "unforgotten audit hf:TARGET hf:UNLEARNED --formats fp4-b64,nf4-b64,int4-g128,int8-row"
    yield "```"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), page())

"""What decides whether an update survives, a line for each thing that was changed: the table of the README, from published rows.

python -P -m unforgotten.reports.verdicts.at_a_glance reports/published README.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from unforgotten.records.files import write_text
from unforgotten.records.rows import Run
from unforgotten.reports.markdown import table
from unforgotten.reports.verdicts.claim import number, points, share
from unforgotten.reports.verdicts.cures import FOLDER, Runs, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds
from unforgotten.reports.verdicts.phased import STUDY as PHASE
from unforgotten.reports.verdicts.phased import phase_sentences
from unforgotten.reports.verdicts.scaling import over_known, taken_back

BEGIN, END = "<!-- at a glance: make generated -->\n", "<!-- end -->\n"
PUBLISHED = "reports/published/"
COLUMNS = (
    *("changed", "method", "format", "alpha", "gain", "taken back"),
    *("M1", "M1 quantized", "still removed", "M4", "seeds"),
)


class Line(NamedTuple):
    """An arm of published runs at a format.

    Attributes:
        changed: what sets it apart.
        runs: folders without the seed, below `reports/published`.
        method, storage, format: as the rows have them; a run without the format does not count.
        depth: depth of forgetting; None for the one that the arm has.
        also: folders of further seeds.
    """

    changed: str
    runs: str
    method: str
    storage: str = "bf16"
    format: str = "int4-g64"
    depth: str | None = None
    also: str = ""


SLOW, FAST = "NPO_GDR+lr1e-5", "NPO_GDR+lr4e-5"
GPTQ = "gptq-retain:int4-g64"
SMOLLM2, GEMMA3 = "real-bases/smollm2", "real-bases/gemma3"
GROUPS: dict[str, tuple[Line, ...]] = {
    "the failure: bf16 parameters, AdamW at lr 1e-5": (Line("nothing", "dead-zone/bf16", SLOW),),
    "bits and format": (
        Line("3 bits", "dead-zone/bf16", SLOW, format="int3-g64"),
        Line("fp4", "dead-zone/bf16", SLOW, format="fp4-b64"),
        Line("nf4, narrow around zero", "dead-zone/bf16", SLOW, format="nf4-b64"),
        Line("4 bits", "bits-and-blocks/npo", "NPO_GDR"),
        Line("5 bits", "bits-and-blocks/npo", "NPO_GDR", format="int5-g64"),
        Line("fp4, blocks of 64", "bits-and-blocks/npo", "NPO_GDR", format="fp4-b64"),
        Line("fp4, blocks of 1024", "bits-and-blocks/npo", "NPO_GDR", format="fp4-b1024"),
    ),
    "how parameters are kept": (
        Line("fp32 masters", "cures/masters", "NPO_GDR", "fp32", depth="0.6"),
        Line("bf16, rounded at random", "cures/masters", "NPO_GDR", "bf16-sr", depth="0.6"),
    ),
    "learning rate and optimizer": (
        Line("no step above lr", "clamped-steps/bf16", SLOW),
        Line("lr 2e-5", "dead-zone/bf16", "NPO_GDR+lr2e-5"),
        Line("lr 4e-5", "dead-zone/bf16", FAST),
        Line("sign descent, lr 1e-5", "optimizers/sign", SLOW),
        Line("sign descent, lr 4e-5", "optimizers/sign", FAST),
        Line("LoRA, lr 2e-4", "optimizers/lora", "NPO_GDR_LoRA"),
    ),
    "losses and masks of the released code": (
        Line("losses of raw logits", "released-code/KLR", "NPO_rawlogits_KLR_rawlogits+slow"),
        Line("SURE at lr 1e-4", "released-code/KLR", "NPO_KLR_SURE+fast"),
        Line("lr 1e-4 without SURE", "released-code/KLR", "NPO_KLR+fast"),
    ),
    "the quantizer": (
        Line("GPTQ", "quantizers/npo", "NPO_GDR", format=GPTQ),
        Line("AWQ", "quantizers/npo", "NPO_GDR", format="awq-retain:int4-g64"),
        Line("HQQ", "quantizers/npo", "NPO_GDR", format="hqq4-g64-opt"),
        Line("NVFP4", "quantizers/npo", "NPO_GDR", format="nvfp4"),
        Line("MXFP4", "quantizers/npo", "NPO_GDR", format="mxfp4-b32"),
        Line("by row", "quantized-inputs/npo", "NPO_GDR", format="int4-row"),
        Line("by row, inputs of 8 bits", "quantized-inputs/npo", "NPO_GDR", format="dynamic:int4-row-a8"),
        Line("by row, inputs of 4 bits", "quantized-inputs/npo", "NPO_GDR", format="dynamic:int4-row"),
        Line("dithered rounding", "quantizers/npo", "NPO_GDR", format="int4-g64-dither"),
    ),
    "the forget loss": (
        Line("gradient ascent, Llama", "held-out/llama", "GA_GDR+lr1e-5"),
        Line("gradient ascent, GPT-NeoX", "held-out/gpt-neox", "GA_GDR+lr1e-5"),
    ),
    "the architecture": (
        Line("GPT-NeoX", "architectures/gpt-neox", "NPO_GDR"),
        Line("Qwen3", "architectures/qwen", "NPO_GDR"),
        Line("mixture of experts", "architectures/moe", "NPO_GDR"),
    ),
    "a target that was itself published in int4, fp32 masters": (
        Line("its own format", "requantize/int4-g64", SLOW, "fp32"),
        Line("int4 by row", "requantize/int4-g64", SLOW, "fp32", "int4-row"),
        Line("nf4", "requantize/int4-g64", SLOW, "fp32", "nf4-b64"),
        Line("its own format, GPTQ", "requantize/int4-g64", SLOW, "fp32", GPTQ),
        Line("int8", "requantize/int4-g64", SLOW, "fp32", "int8-row"),
    ),
    "a real base": (
        Line("SmolLM2-135M, lr 5e-5", "smollm2", "NPO_GDR", also=SMOLLM2),
        Line("SmolLM2-135M, lr 5e-5, nf4", "smollm2", "NPO_GDR", format="nf4-b64", also=SMOLLM2),
        Line("SmolLM2-135M, lr 5e-5, GPTQ", "smollm2", "NPO_GDR", format=GPTQ, also=SMOLLM2),
        Line("SmolLM2-135M, lr 5e-5, fp32 masters", "smollm2", "NPO_GDR", "fp32", also=SMOLLM2),
        Line("SmolLM2-135M, lr 2e-4", SMOLLM2, "NPO_GDR+lr2e-4"),
        Line("Gemma 3 270M, lr 1e-5", "gemma3", "NPO_GDR", also=GEMMA3),
        Line("Gemma 3 270M, lr 1e-5, nf4", "gemma3", "NPO_GDR", format="nf4-b64", also=GEMMA3),
        Line("Gemma 3 270M, lr 1e-5, GPTQ", "gemma3", "NPO_GDR", format=GPTQ, also=GEMMA3),
        Line("Gemma 3 270M, lr 1e-5, fp32 masters", "gemma3", "NPO_GDR", "fp32", also=GEMMA3),
        Line("Gemma 3 270M, lr 4e-5", GEMMA3, "NPO_GDR+lr4e-5"),
    ),
}
"""Lines of the table by what they change."""


class Seen(NamedTuple):
    """What the runs of a line show, over seeds.

    Attributes:
        alpha: weights of the retain term, one in all seeds or several.
        gain: share of the update that is left.
        back: share of the added forget loss that the rounding cells take back; None where little was added.
        memory: M1 of target and unlearned model, means.
        quantized: the same of both in the format.
        removed: M1 of the quantized target less that of the quantized unlearned model, points.
        utility: M4 of the unlearned model less that of the target, points.
    """

    alpha: tuple[float, ...]

    gain: Mean
    back: Mean | None
    memory: tuple[float, float]
    quantized: tuple[float, float]
    removed: Mean
    utility: Mean


def seen(evidence: Evidence, line: Line) -> Seen:
    """Return what the runs of a line show.

    Raises:
        ValueError: no published run has it.
    """
    runs = _runs(evidence, line)
    if not runs:
        raise ValueError(f"{line.runs}: must be published runs with {line.method} in {line.storage}, got none")
    at = ("unlearned", line.method, line.storage)
    memory = [
        (
            *(value_of(run, "M1", "target"), value_of(run, "M1", *at)),
            *(value_of(run, "M1", "target", fmt=line.format), value_of(run, "M1", *at, line.format)),
        )
        for _, run in runs
    ]
    knew, knows, kept, keeps = (sum(values) / len(values) for values in zip(*memory, strict=True))
    return Seen(
        tuple(
            dict.fromkeys(
                row.alpha for _, run in runs if (row := run.get("forget_loss", *at)) and row.alpha is not None
            )
        ),
        over_seeds((seed, value_of(run, "gain", *at, line.format)) for seed, run in runs),
        over_known((seed, taken_back(run, *at, line.format)) for seed, run in runs),
        (knew, knows),
        (kept, keeps),
        over_seeds(
            (seed, of_target - of_model) for (seed, _), (_, _, of_target, of_model) in zip(runs, memory, strict=True)
        ),
        over_seeds((seed, value_of(run, "M4", *at) - value_of(run, "M4", "target")) for seed, run in runs),
    )


def _runs(evidence: Evidence, line: Line) -> Runs:
    found = []
    for runs in filter(None, (line.runs, line.also)):
        for path in sorted(evidence.published.glob(f"{runs}-seed*/config.json")):
            place = FOLDER.fullmatch(path.parent.name)
            if place is not None and place["level"] == Path(runs).name:
                run = _state(evidence.run(str(path.parent.relative_to(evidence.published))), line)
                found += [(int(place["seed"]), run)] if run is not None else []
    return found


def _state(run: Run, line: Line) -> Run | None:
    states = [one for one in run.by_depth() if (line.method, line.storage) in one.arms and line.format in one.formats]
    wanted = [one for one in states if line.depth is None or one.depth == line.depth]
    return wanted[0] if wanted else None


def glance_table(evidence: Evidence) -> str:
    """Return the table."""
    rows = []
    for group, lines in GROUPS.items():
        rows.append((f"**{group}**", *[""] * (len(COLUMNS) - 1)))
        for line in lines:
            one = seen(evidence, line)
            memory = (f"{before:.0f} → {after:.0f}" for before, after in (one.memory, one.quantized))
            back = one.back.text(share) if one.back else "–"
            name = line.method.partition("+")[0]
            alpha = ", ".join(f"{value:g}" for value in one.alpha)
            told = [one.gain.text(number), back, *memory, one.removed.text(points), one.utility.text(points)]
            if one.gain.seeds == 1:
                told = [text.replace(" (one seed)", "") for text in told]
            rows.append((line.changed, name, line.format, alpha, *told, str(one.gain.seeds)))
    return table(COLUMNS, rows)


def at_a_glance(evidence: Evidence, published: str = "") -> str:
    """Return the table, and below it the phase diagram with what it says.

    Args:
        evidence: published rows.
        published: path of their folder from the text that they go to, with "/" at its end.
    """
    told = " ".join(phase_sentences(evidence, published))
    about = "Gain over the edge of the storage, in units of the format's cell at zero"
    figure = f"![{about}]({published}{PHASE}/phase.svg)"
    return "\n\n".join([glance_table(evidence), *([figure, told] if told else [])])


def renewed(text: str, evidence: Evidence) -> str:
    """Return a text with the table between its two marks.

    Raises:
        ValueError: the text has no such marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"text must hold {BEGIN.strip()} and {END.strip()}, got a text without")
    return f"{before}{BEGIN}\n{at_a_glance(evidence, PUBLISHED)}\n\n{END}{after}"


if __name__ == "__main__":
    published, readme = map(Path, sys.argv[1:])
    write_text(readme, renewed(readme.read_text(encoding="utf-8"), Evidence(published)))

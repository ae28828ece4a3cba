"""Whether memory comes back where inputs are quantized at run time: at 8 bits in other architectures, beside 4-bit weights in `tiny`.

inputs_claim(Evidence(Path("reports/published"))).word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unforgotten.reports.verdicts.architectures import STUDY as ARCHITECTURES
from unforgotten.reports.verdicts.architectures import Architecture, architectures, counted_seeds
from unforgotten.reports.verdicts.claim import WHOLE, Claim, Table, Word, share, unmeasured
from unforgotten.reports.verdicts.cures import back_of, folders_of, runs_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds
from unforgotten.reports.verdicts.scaling import format_table, scaled

STUDY = "quantized-inputs"
WEIGHTS = "int4-row"
INPUTS: Mapping[str, str] = {
    WEIGHTS: "inputs as they are",
    f"dynamic:{WEIGHTS}-a8": "of 8 bits",
    f"dynamic:{WEIGHTS}": "of 4 bits",
}
"""Formats of the same weights by what their inputs are."""


class Back(NamedTuple):
    """Share of the added forget loss that is gone beside weights of 4 bits, by format of `INPUTS`, in a storage arm."""

    storage: str
    shares: Mapping[str, Mean]

    @property
    def text(self) -> str:
        """It in words."""
        told = ", ".join(f"{INPUTS[fmt]} {mean.text(share)}" for fmt, mean in self.shares.items())
        return f"Weights of 4 bits by row, {self.storage} parameters, share of the added forget loss that came back: {told}."


def inputs_claim(evidence: Evidence) -> Claim:
    """Return the verdict on the paper's next check 2."""
    name, statement = "Next check 2", "Does it persist with dynamic quantization?"
    eight = [one for one in architectures(evidence) if one.dynamic is not None]
    four = _beside_four_bits(evidence)
    if not eight and not four:
        scope = "its weights are int8 by row, which pass the whole update in the five runs of `tiny`; inputs quantized at run time are not measured"
        return unmeasured(name, statement, scope)
    names = dict.fromkeys(one.name for one in eight)
    found = scaled(evidence, STUDY)
    about = "Inputs quantized at run time beside weights of 4 and 8 bits: gain, and share of the added forget loss that cells take back"
    return Claim(
        name,
        statement,
        _word(four),
        "; ".join([*_four_scope(four), *_eight_scope(eight)]),
        (*(one.text for one in four), *_eight_found(eight)),
        evidence.predicted(STUDY),
        rows=(
            *folders_of(evidence, STUDY),
            *(run for run in folders_of(evidence, ARCHITECTURES) if run.split("/")[-1].rsplit("-seed", 1)[0] in names),
        ),
        tables=(Table(about, format_table(found)),) if found else (),
    )


def _beside_four_bits(evidence: Evidence) -> list[Back]:
    return [
        Back(
            storage,
            {fmt: over_seeds((seed, back_of(run, method, storage, fmt)) for seed, run in runs) for fmt in INPUTS},
        )
        for (_, method, storage), runs in runs_of(evidence, STUDY).items()
    ]


def _word(four: Sequence[Back]) -> Word:
    """Return "confirmed" where memory comes back from bf16 parameters whatever inputs are, "refuted" where it does with none quantized."""
    quantized = [mean for one in four if one.storage == "bf16" for fmt, mean in one.shares.items() if fmt != WEIGHTS]
    if not quantized or min(mean.seeds for mean in quantized) < 2:
        return "in part"
    back = [mean.low > 0 for mean in quantized]
    return "confirmed" if all(back) else "in part" if any(back) else "refuted"


def _four_scope(four: Sequence[Back]) -> list[str]:
    if not four:
        return ["4-bit weights with quantized inputs, where there is something that could come back, are not measured"]
    seeds = min(mean.seeds for one in four for mean in one.shares.values())
    return [f"weights of 4 bits by row, inputs by token, NPO_GDR of `tiny` at lr 1e-05, {counted_seeds(seeds)}"]


def _eight_scope(eight: Sequence[Architecture]) -> list[str]:
    if not eight:
        return []
    backs = [one.dynamic for one in eight if one.dynamic]
    none = all(abs(back.value) <= WHOLE for back in backs)
    return [
        (
            f"at 8 bits {'nothing comes back' if none else 'some comes back'} in {len({one.name for one in eight})} architectures, "
            f"{counted_seeds(min(back.seeds for back in backs))} each"
        )
    ]


def _eight_found(eight: Sequence[Architecture]) -> list[str]:
    if not eight:
        return []
    backs = [one.dynamic.value for one in eight if one.dynamic]
    static = [one.static.value for one in eight if one.static]
    return [
        (
            f"At 8 bits {share(min(backs))} to {share(max(backs))} came back, means over seeds; with inputs as they are "
            f"{f'{share(min(static))} to {share(max(static))}' if static else 'it was not measured'}."
        ),
        *(f"{one.name}, {one.storage}: {one.dynamic.text(share)}." for one in eight if one.dynamic),
    ]

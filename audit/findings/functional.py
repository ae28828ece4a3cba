"""The functional gain in words: what a format leaves of an update along the gradient of the forget loss (T20)."""

from __future__ import annotations

from unforgotten.audit.findings.row import FindingId, FindingRow, finding
from unforgotten.audit.verdict.legs import BehaviourLeg, FunctionalLeg, FunctionalRow, OutputLeg


def functional_of(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> FunctionalLeg | None:
    """Return the leg that has a gradient, that of the texts first; None where neither does."""
    for leg in (output, behaviour):
        if leg is not None and "functional" in leg:
            return leg["functional"]
    return None


def functional_findings(leg: FunctionalLeg | None) -> list[FindingRow]:
    """Return one finding a format: what comes back of the forget loss by gating, to first order."""
    return [] if leg is None else [row for one in leg["formats"] if (row := _finding(one)) is not None]


def _finding(row: FunctionalRow) -> FindingRow | None:
    gamma, gain, chance = row["functional_gain"], row["gain"], row["sham_shift"]
    if gamma is None or gain is None or chance is None:
        return None
    id: FindingId = "functional-gain"
    if row["first_order"] <= 0:
        says = "says nothing of forgetting: the update does not raise the forget loss to first order"
    elif gamma < 1 - chance:
        id, says = "comes-back", "of what was forgotten, part comes back by the rounding cells, to first order"
    elif gamma > 1 + chance:
        id, says = "forgets-further", "the quantized model forgets further by the rounding cells, to first order"
    else:
        says = f"no further from 1 than the {chance:.2f} by which the rounding of random updates of this size moves it"
    return finding(
        id,
        "warning" if id == "comes-back" else "note",
        f"{row['format']}: along the gradient of the forget loss {gamma:.2f} of the update is left, along the update itself "
        f"{gain:.2f}: {says}.",
        measure="functional gain",
        effect=gamma,
        format=row["format"],
    )

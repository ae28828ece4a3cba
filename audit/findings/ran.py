"""How the models of an audit ran, in words, and what their dtype took of the update before anything was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unforgotten.audit.findings.row import FindingRow, Severity, finding
from unforgotten.audit.findings.sentences import judge_gain, share
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg, Ran, RoundedRow

MODELS = "none"
"""Name of the row of the models themselves."""
LOST = ("swallowed", "partly swallowed")


def ran_of(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> list[Ran]:
    """Return how the models of each leg ran, once where it is the same; none of a leg that was made elsewhere."""
    found: list[Ran] = []
    for leg in (output, behaviour):
        if leg is not None and "ran" in leg and leg["ran"] not in found:
            found.append(leg["ran"])
    return found


def ran_sentences(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> list[str]:
    """Return what a reader must know of how the models ran."""
    told = [sentence for ran in ran_of(output, behaviour) for sentence in _sentences(ran)]
    legs: tuple[Any, ...] = (output, behaviour)
    rows = [row for leg in legs if leg is not None for row in leg["formats"] if "ran" in row]
    return [*told, *dict.fromkeys(_of_itself(row["format"], row["ran"]) for row in rows)]


def _sentences(ran: Ran) -> Iterator[str]:
    yield f"Models ran in {ran['dtype']} on {', '.join(ran['devices'])}; losses are computed in float32 or wider."
    rows = ran["rounded"]
    yield from (_of_models(row, ran["dtype"]) for row in rows if row["format"] == MODELS)
    again = [_of_format(row) for row in rows if row["format"] != MODELS and (row["target"] or row["unlearned"])]
    if again:
        yield f"Quantized values, computed in float32, were rounded to {ran['dtype']} again: {'; '.join(again)}."
    if ran["dtype"] == "float16":
        yield "The functional gain (T20) is left out: float16 loses the small gradients of a backward pass."


def _of_itself(name: str, ran: Ran) -> str:
    return (
        f"The {name} models ran by {ran['runtime']} on {', '.join(ran['devices'])}, what is not quantized of them in "
        f"{ran['dtype']}; all others are simulated: plain models with the values of quantized ones."
    )


def _of_models(row: RoundedRow, dtype: str) -> str:
    if not row["target"] and not row["unlearned"]:
        return f"Every weight of target and unlearned model is exactly a {dtype}."
    text = (
        f"Rounding to {dtype} changes {share(row['target'] / row['weights'])} of the target's weights and "
        f"{share(row['unlearned'] / row['weights'])} of the unlearned model's"
    )
    if not row["moved"] or row["gain_ran"] is None:
        return f"{text}."
    lost = f"{row['swallowed']:,} of the {row['moved']:,} weights that the update moves are equal then"
    return f"{text}; {lost}, and the gain of the update that ran is {row['gain_ran']:.3f}."


def _of_format(row: RoundedRow) -> str:
    changed = (row["target"] + row["unlearned"]) / (2 * row["weights"])
    told = f"{row['format']} {share(changed)} of the values"
    if row["gain"] is None or row["gain_ran"] is None:
        return told
    lost = f", {row['swallowed']:,} of {row['moved']:,} differences gone" if row["swallowed"] else ""
    return f"{told}{lost}, gain {row['gain']:.3f} → {row['gain_ran']:.3f}"


def ran_findings(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> list[FindingRow]:
    """Return one finding for the models and each format of whose update the dtype, and not the format, took a part."""
    found: list[FindingRow] = []
    for ran in ran_of(output, behaviour):
        rows = [_finding(row, ran["dtype"]) for row in ran["rounded"] if _worse(row)]
        found += [row for row in rows if row not in found]
    return found


def _worse(row: RoundedRow) -> bool:
    """Tell whether the gain of what ran has another word than the gain of the float32 values, and a worse one."""
    gain, ran = row["gain"], row["gain_ran"]
    if gain is None or ran is None or ran >= gain:
        return False
    return judge_gain(ran, 0.0) in LOST and judge_gain(ran, 0.0) != judge_gain(gain, 0.0)


def _finding(row: RoundedRow, dtype: str) -> FindingRow:
    gain = row["gain_ran"] or 0.0
    word = judge_gain(gain, 0.0)
    severity: Severity = "error" if word == "swallowed" else "warning"
    lost = "the update" if word == "swallowed" else "part of the update"
    what = "the models" if row["format"] == MODELS else f"the models in {row['format']}"
    return finding(
        "ran-in-dtype",
        severity,
        f"Rounding to {dtype}, in which the models ran, swallows {lost} of {what}: its gain is {gain:.2f} there, "
        f"{row['gain']:.2f} in float32. What was measured is not the models as they are stored; --dtype float32 measures those.",
        measure="gain of what ran",
        effect=gain,
        format=None if row["format"] == MODELS else row["format"],
    )

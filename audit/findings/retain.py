"""The finding that a model lost what it should keep: a broken model forgets everything, and no verdict may praise it.

Two signs, each of the benchmark's metrics, each beyond chance: M4, the knowledge of the retain split, falls below KEPT of
what it was; or the retain loss rises by LOSS_RISE nats a token, which is ten times the perplexity. They are asked of the
unlearned model against the target, and of each quantized unlearned model against its own full precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from unforgotten.audit.findings.row import STANDARD_DEVIATIONS, FindingRow, finding
from unforgotten.audit.verdict.legs import BehaviourLeg, Mean

KEPT = 0.5
LOSS_RISE = math.log(10.0)


def retain_findings(leg: BehaviourLeg | None) -> list[FindingRow]:
    """Return one finding for the unlearned model if it is broken, else one for each format that breaks it."""
    if leg is None:
        return []
    target, unlearned = (leg["metrics"].get(name, {}) for name in ("target", "unlearned"))
    whole = _lost("The unlearned model", target, unlearned, None)
    if whole is not None:
        return [whole]
    return list(_by_format(leg, unlearned))


def _by_format(leg: BehaviourLeg, unlearned: Mapping[str, Mean]) -> Iterator[FindingRow]:
    for row in leg["formats"]:
        name = row["format"]
        found = _lost(f"{name}: the quantized unlearned model", unlearned, row["metrics"].get("Q(unlearned)", {}), name)
        if found is not None:
            yield found


def _lost(
    who: str, before: Mapping[str, Mean], after: Mapping[str, Mean], format_name: str | None
) -> FindingRow | None:
    knowledge, loss = (_pair(name, before, after) for name in ("M4", "retain_loss"))
    fell = knowledge is not None and _beyond(*knowledge, (1 - KEPT) * knowledge[0]["value"])
    rose = loss is not None and _beyond(loss[1], loss[0], LOSS_RISE)
    if not (fell or rose):
        return None
    seen = [f"M4 {_arrow(knowledge, '.0f')}"] if knowledge is not None else []
    seen += [f"retain loss {_arrow(loss, '.2g')}"] if loss is not None else []
    sentence = f"{who} lost what it should keep: {', '.join(seen)}; what a broken model forgot says nothing."
    measure, effect = ("change of M4", knowledge) if fell else ("change of the retain loss, nats a token", loss)
    assert effect is not None, "one of the two was found"
    change, margin = effect[1]["value"] - effect[0]["value"], STANDARD_DEVIATIONS * _stderr(*effect)
    return finding(
        "retain-lost",
        "error",
        sentence,
        measure=measure,
        effect=change,
        interval=(change - margin, change + margin),
        format=format_name,
    )


def _pair(name: str, before: Mapping[str, Mean], after: Mapping[str, Mean]) -> tuple[Mean, Mean] | None:
    return (before[name], after[name]) if name in before and name in after else None


def _beyond(high: Mean, low: Mean, least: float) -> bool:
    """Tell whether a mean lies above another by more than `least`, and by more than chance."""
    gap = high["value"] - low["value"]
    return gap > least and gap > STANDARD_DEVIATIONS * _stderr(high, low)


def _stderr(one: Mean, other: Mean) -> float:
    return math.hypot(one["stderr"] or 0.0, other["stderr"] or 0.0)


def _arrow(pair: tuple[Mean, Mean] | None, style: str) -> str:
    return "–" if pair is None else " → ".join(format(mean["value"], style) for mean in pair)

"""The finding that a model lost what it should keep: a broken model forgets everything, and no verdict may praise it.

Two signs, each of the benchmark's metrics, each beyond chance: M4, the knowledge of the retain split, falls below KEPT of
what it was; or the retain loss rises by LOSS_RISE nats a token, which is ten times the perplexity. They are asked of the
unlearned model against the target, and of each quantized unlearned model against its own full precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from unforgotten.audit.findings.row import STANDARD_DEVIATIONS, FindingRow, finding
from unforgotten.audit.verdict.legs import BehaviourLeg, Mean, retained_of

KEPT = 0.5
LOSS_RISE = math.log(10.0)
TENS = 9.95
"""From which on a mean is printed without decimals: percentages are, shares are not."""


def retain_findings(leg: BehaviourLeg | None) -> list[FindingRow]:
    """Return one finding for the unlearned model if it is broken, else one for each format that breaks it."""
    if leg is None:
        return []
    target, unlearned = (leg["metrics"].get(name, {}) for name in ("target", "unlearned"))
    names = retained_of(leg)
    whole = _lost("The unlearned model", (target, unlearned), names, None)
    if whole is not None:
        return [whole]
    return list(_by_format(leg, unlearned, names))


def _by_format(leg: BehaviourLeg, unlearned: Mapping[str, Mean], names: Sequence[str]) -> Iterator[FindingRow]:
    for row in leg["formats"]:
        name = row["format"]
        pair = (unlearned, row["metrics"].get("Q(unlearned)", {}))
        found = _lost(f"{name}: the quantized unlearned model", pair, names, name)
        if found is not None:
            yield found


def _lost(
    who: str, models: tuple[Mapping[str, Mean], Mapping[str, Mean]], names: Sequence[str], format_name: str | None
) -> FindingRow | None:
    named = {name: pair for name in names if (pair := _pair(name, *models)) is not None}
    metric = next((name for name, pair in named.items() if _halved(pair)), next(iter(named), ""))
    knowledge, loss = named.get(metric), _pair("retain_loss", *models)
    fell = knowledge is not None and _halved(knowledge)
    rose = loss is not None and _beyond(loss[1], loss[0], LOSS_RISE)
    if not (fell or rose):
        return None
    digits = ".0f" if knowledge is not None and knowledge[0]["value"] >= TENS else ".2g"
    seen = [f"{metric} {_arrow(knowledge, digits)}"] if knowledge is not None else []
    seen += [f"retain loss {_arrow(loss, '.2g')}"] if loss is not None else []
    sentence = f"{who} lost what it should keep: {', '.join(seen)}; what a broken model forgot says nothing."
    measure, effect = (f"change of {metric}", knowledge) if fell else ("change of the retain loss, nats a token", loss)
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


def _halved(pair: tuple[Mean, Mean]) -> bool:
    """Tell whether less than KEPT is left of what the first mean was."""
    return _beyond(*pair, (1 - KEPT) * pair[0]["value"])


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

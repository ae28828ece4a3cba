"""What must be the same in audits that are ranked together: the target, and what was asked of the models.

Legs hold a digest of what was asked, `items_sha256`. Where all do, it is compared; those of earlier versions have none, and of
them the name of the benchmark and the numbers of items are. The digest of a judged evaluation may be of ids alone, and its
target is known by the name of its file only, so of it names are compared too.

    differences(audits)[0]  # "Not comparable: different items: npo | ga; no winner is named among them."
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unforgotten.audit.comparison.read import Compared
from unforgotten.audit.verdict.legs import BehaviourLeg, deciding_of, retained_of

DIGEST = "items_sha256"
LEGS = {"items": "behaviour", "texts": "output"}
"""What legs measure on, and the legs."""
END = "no winner is named among them."
DIGITS = 3
"""Digits of a mean that are compared, for rounding differs between devices."""


def differences(audits: Sequence[Compared]) -> list[str]:
    """Return one line for each thing that must be the same and is not; a judged evaluation knows no hash of its target."""
    legs = _legs(audits, "behaviour")
    surely = _surely(legs)
    seen = {
        "targets": {one.name: one.target for one in audits if one.weights},
        **{what: _digests(_legs(audits, leg)) for what, leg in LEGS.items()},
        "benchmarks": {} if surely else {name: leg["benchmark"] for name, leg in legs.items()},
        "numbers of items": {} if surely else {name: str(sorted(numbers(leg).items())) for name, leg in legs.items()},
    }
    found = [
        f"Not comparable: different {what}: {_parts(values)}; {END}"
        for what, values in seen.items()
        if len(set(values.values())) > 1
    ]
    told = "" if surely else _unsteady(audits)
    return [*found, f"Not comparable: {told}: items or settings differ; {END}"] if told and not found else found


def doubts(audits: Sequence[Compared]) -> list[str]:
    """Return one line for each thing that may differ between audits that are comparable as far as can be told."""
    if differences(audits):
        return []
    found = [_untold(what, _legs(audits, leg)) for what, leg in LEGS.items()]
    told = _unsteady(audits)
    if told:
        found.append(f"{told[0].upper()}{told[1:]}, on the same items: settings of the measurement differ.")
    return [line for line in found if line]


def numbers(leg: BehaviourLeg | None) -> dict[str, int]:
    """Return how many items of each metric the target was measured on."""
    return {} if leg is None else {name: mean["n"] for name, mean in leg["metrics"].get("target", {}).items()}


def _legs(audits: Sequence[Compared], which: str) -> dict[str, Any]:
    return {one.name: getattr(one, which) for one in audits if getattr(one, which) is not None}


def _digests(legs: Mapping[str, Any]) -> dict[str, str]:
    return {name: leg[DIGEST] for name, leg in legs.items() if leg.get(DIGEST)}


def _surely(legs: Mapping[str, Any]) -> bool:
    """Tell whether the digests alone say what was asked: every leg has one, and none was judged."""
    return len(_digests(legs)) == len(legs) and not any("deciding" in leg for leg in legs.values())


def _parts(values: Mapping[str, str]) -> str:
    groups = [", ".join(name for name in values if values[name] == value) for value in dict.fromkeys(values.values())]
    return " | ".join(groups)


def _untold(what: str, legs: Mapping[str, Any]) -> str:
    """Return a line on legs of earlier versions, which have no digest; none where nothing is compared with them."""
    without = [name for name in legs if name not in _digests(legs)]
    if not without or len(legs) < 2:
        return ""
    return (
        f"It cannot be told whether {', '.join(legs)} were measured on the same {what}: an earlier version wrote "
        f"{', '.join(without)}, without a digest of them."
    )


def _unsteady(audits: Sequence[Compared]) -> str:
    """Return a clause on the first metric of one target that differs between audits; none where none does."""
    by_target: dict[str, list[Compared]] = {}
    for one in audits:
        if one.behaviour is not None:
            by_target.setdefault(one.target, []).append(one)
    return next((told for group in by_target.values() for told in _means(group)), "")


def _means(audits: Sequence[Compared]) -> Iterator[str]:
    """Yield a clause for each metric that decides, or is retained, whose mean on the target differs."""
    shown: dict[str, dict[str, str]] = {}
    for name, leg in _legs(audits, "behaviour").items():
        means = leg["metrics"].get("target", {})
        for metric in (*deciding_of(leg), *retained_of(leg)):
            if metric in means:
                shown.setdefault(metric, {})[name] = f"{means[metric]['value']:.{DIGITS}g}"
    for metric, values in shown.items():
        if len(set(values.values())) > 1:
            yield f"one target has {metric} {', '.join(f'{value} in {name}' for name, value in values.items())}"

"""What a saliency mask buys at 4 bits: SURE beside the same method at the same learning rate without a mask, seed by seed.

for mask in masks(Evidence(Path("reports/published"))):
    print(mask.part, mask.threshold, mask.gain.text("{:+.2f}".format))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unforgotten.records.depths import END, words
from unforgotten.records.rows import Run
from unforgotten.reports.verdicts.claim import Claim, Word, unmeasured
from unforgotten.reports.verdicts.cures import ALIKE, Kept, apart, folders_of, kept, runs_of
from unforgotten.reports.verdicts.cures import STUDY as CURES
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds
from unforgotten.reports.verdicts.optimizers import STUDY as OPTIMIZERS
from unforgotten.reports.verdicts.optimizers import (
    Compared,
    compared,
    optimizer_folders,
    optimizer_sentences,
    optimizer_tables,
)

STUDY = "sure"
MASKED = re.compile(r"(?P<plain>.+)_SURE\+(?P<part>[a-z]+)-(?P<threshold>\d+)")
PART_THRESHOLD = 90
POINTS = 5.0
"""Points of M4 below the target's that count as none."""


class Mask(NamedTuple):
    """A mask over the seeds of the study.

    Attributes:
        part: what is masked.
        threshold: percentile below which a part is masked.
        method: name of the arm.
        gain: gain at int4 and fp4 less that without a mask.
        back: share of the added forget loss that came back, likewise.
        utility: M4 of the unlearned model less that without a mask, points.
        each: what each seed kept.
        plain: what each seed kept without a mask.
    """

    part: str
    threshold: int
    method: str
    gain: Mean
    back: Mean
    utility: Mean
    each: Sequence[Kept]
    plain: Sequence[Kept]

    @property
    def differs(self) -> bool | None:
        """Whether gain or share differ from those without a mask by more than `ALIKE`; None where the seeds cannot tell."""
        return apart((self.gain, self.back))

    @property
    def keeps(self) -> bool:
        """Whether on every seed the update is whole, nothing came back, and M4 is that of the target."""
        return all(stable(one) for one in self.each)


def stable(one: Kept) -> bool:
    """Whether an arm of one seed has a whole update, of which nothing came back, at the target's M4."""
    return abs(one.gain - 1) <= ALIKE and one.back <= ALIKE and one.utility >= -POINTS


def masks(evidence: Evidence) -> list[Mask]:
    """Return the masks in the order of the rows; none where the study is not published.

    A seed counts where both arms kept weights at the same depth.
    """
    found: dict[tuple[str, str], dict[tuple[int, str | None], Kept]] = {}
    for (_, method, storage), runs in runs_of(evidence, STUDY).items():
        whole = {
            (seed, run.depth): kept(run, method, storage) for seed, run in runs if _missed(run, method, storage) is None
        }
        found.setdefault((method, storage), {}).update(whole)
    told = []
    for (method, storage), masked in found.items():
        name = MASKED.fullmatch(method)
        plain = found.get((name["plain"], storage), {}) if name else {}
        places = [place for place in masked if place in plain]
        if name is None or not places:
            continue
        gain, back, utility = (
            over_seeds((at[0], getattr(masked[at], what) - getattr(plain[at], what)) for at in places)
            for what in ("gain", "back", "utility")
        )
        each, bare = ([of[at] for at in places] for of in (masked, plain))
        told.append(Mask(name["part"], int(name["threshold"]), method, gain, back, utility, each, bare))
    return told


def _missed(run: Run, method: str, storage: str) -> str | None:
    """Return why an arm cannot stand beside another at a depth; None where it can."""
    if all(run.value("gain", "unlearned", method, storage, name) is None for name in run.formats):
        return "none of which a format quantizes"
    return "and it did not reach the depth that was asked for" if run.depth == END else None


class Missed(NamedTuple):
    """A mask that cannot stand beside no mask, in a sentence over its seeds."""

    part: str
    threshold: int
    told: str


def missed(evidence: Evidence) -> list[Missed]:
    """Return the masks that moved no quantized weight, or did not reach the depth."""
    seeds: dict[tuple[str, int, str, str], list[tuple[int, float]]] = {}
    for (_, method, storage), runs in runs_of(evidence, STUDY).items():
        name = MASKED.fullmatch(method)
        for seed, run in runs:
            row, why = run.get("forget_loss", "unlearned", method, storage), _missed(run, method, storage)
            if name is None or row is None or row.value is None or why is None:
                continue
            share = f"it leaves {100 * (row.updated_share or 0):.1f} % of the weights to move, {why}"
            at = (name["part"], int(name["threshold"]), share, f"after {row.steps} steps")
            seeds.setdefault(at, []).append((seed, row.value))
    return [
        Missed(part, threshold, _missed_text(part, threshold, share, of, steps))
        for (part, threshold, share, steps), of in seeds.items()
    ]


def _missed_text(part: str, threshold: int, share: str, of: Sequence[tuple[int, float]], steps: str) -> str:
    each = f"seed{'s' if len(of) > 1 else ''} {', '.join(str(seed) for seed, _ in of)}"
    losses = ", ".join(f"{loss:.2f}" for _, loss in of)
    return f"Mask by {part}, threshold {threshold}, {each}: {share}, and the forget loss is {losses} {steps}."


def mask_claims(evidence: Evidence) -> Mapping[str, Claim]:
    """Return the verdicts that rest on the study, by name: C3, open questions 2 and 3, next check 3."""
    asked = {
        "C3": "At matched size of the update against the step, SURE, LoRA, sign-based and zeroth-order optimizers differ no more than "
        "chance.",
        "Open question 2": "Can saliency masks with a large learning rate be made stable?",
        "Open question 3": "How do masks by module compare with neurons, rows and layers?",
        "Next check 3": "How sensitive is SURE to its threshold?",
    }
    found = masks(evidence)
    if not found:
        scope = "four masks and a threshold sweep are there (`unforgotten study sure`), and no published row has them"
        return {name: unmeasured(name, text, scope) for name, text in asked.items()}
    by_part = [mask for mask in found if mask.threshold == PART_THRESHOLD]
    by_threshold = [mask for mask in found if mask.part == "module"]
    none, scope, others = missed(evidence), _scope(evidence, found), compared(evidence)
    told: Mapping[str, tuple[Word, str, tuple[str, ...]]] = {
        "C3": (
            _differ([*(mask.differs for mask in found), *(one.differs for one in others)]),
            f"masks: {scope}; {_others(others)}",
            (*_differences(found), *optimizer_sentences(evidence)),
        ),
        "Open question 2": (_stable(found), f"{scope}, alpha 1", (*_stability(found), *_heavier(evidence))),
        "Open question 3": (
            _answered(by_part),
            f"{scope}, threshold {PART_THRESHOLD}",
            (*map(told_of, by_part), *(mask.told for mask in none if mask.threshold == PART_THRESHOLD)),
        ),
        "Next check 3": (
            _answered(by_threshold),
            f"{scope}, by module",
            (*map(told_of, by_threshold), *(mask.told for mask in none if mask.part == "module")),
        ),
    }
    return {
        name: Claim(
            *(name, text, *told[name]),
            before=evidence.predicted(OPTIMIZERS) if name == "C3" else "",
            tables=optimizer_tables(evidence) if name == "C3" else (),
            rows=(*folders_of(evidence, STUDY), *(optimizer_folders(evidence) if name == "C3" else ())),
        )
        for name, text in asked.items()
    }


def _differ(differ: Sequence[bool | None]) -> Word:
    return "refuted" if True in differ else "open" if None in differ else "in part"


def _others(others: Sequence[Compared]) -> str:
    """Return what of the statement is measured beside masks."""
    if not others:
        return "LoRA, sign-SGD and zeroth-order optimizers are not measured"
    groups = {"other than AdamW": True, "like AdamW": False, "the seeds cannot tell": None}
    told = [
        f"{word}: {', '.join(names)}"
        for word, differs in groups.items()
        if (names := [one.name for one in others if one.gain is not None and one.differs is differs])
    ]
    if alone := [one.name for one in others if one.gain is None]:
        told.append(f"no AdamW of the same size: {', '.join(alone)}")
    return f"{'; '.join(told)}; zeroth-order optimizers are not measured"


def _differences(found: Sequence[Mask]) -> tuple[str, ...]:
    names = {
        word: ", ".join(f"{mask.part}-{mask.threshold}" for mask in found if mask.differs is word) or "none"
        for word in (True, False, None)
    }
    return (
        (
            f"Gain or share that came back other than without a mask, by more than {ALIKE} and with an interval off 0: {names[True]}. Alike within "
            f"{ALIKE}: {names[False]}. The seeds cannot tell: {names[None]}."
        ),
        "Each mask stands under open question 3 or next check 3.",
    )


def _alike(found: Sequence[Mask]) -> str:
    alike = (mask for mask in found if -ALIKE <= mask.gain.low and mask.gain.high <= ALIKE)
    return ", ".join(f"{mask.part}-{mask.threshold}" for mask in alike) or "none"


def _stable(found: Sequence[Mask]) -> Word:
    """Return "in part" where a mask keeps all on every seed; none that does says no more than that of the settings it was tried in."""
    return _answered(found) if any(mask.keeps for mask in found) else "open"


def _stability(found: Sequence[Mask]) -> tuple[str, ...]:
    keeps = ", ".join(f"{mask.part}-{mask.threshold}" for mask in found if mask.keeps) or "none"
    plain = ", ".join("yes" if stable(one) else "no" for one in found[0].plain)
    return (
        (
            f"On every seed a whole update (gain within {ALIKE} of 1), nothing back (at most {100 * ALIKE:.0f} %) and M4 no more than {POINTS:g} points "
            f"below the target's: {keeps}. Without a mask at the same lr, seed by seed: {plain}."
        ),
        *(
            f"M4 less that of the target, mask by {mask.part}, threshold {mask.threshold}: {_listed(mask.each)}; without a mask "
            f"{_listed(mask.plain)}."
            for mask in found
        ),
    )


def _heavier(evidence: Evidence) -> list[str]:
    """Return what the mask of the study of cures costs, where the retain term weighs more; none where it is not published."""
    arms = runs_of(evidence, CURES)
    each = {
        name: [(seed, run.depth, kept(run, method, storage)) for seed, run in runs if run.depth != END]
        for name, method, storage in (("mask", "NPO_GDR_SURE", "bf16"), ("none", "NPO_GDR+lr5e-5", "bf16"))
        if (runs := arms.get(("bf16", method, storage)))
    }
    if len(each) < 2:
        return []
    deepest = max(depth or "" for _, depth, _ in each["mask"])
    told = {name: _listed([one for _, depth, one in of if depth == deepest]) for name, of in each.items()}
    return [
        (
            f"With alpha 16 and otherwise alike ({CURES}, to {words(deepest)}), M4 less that of the target, mask by module, threshold 90: "
            f"{told['mask']}; without a mask {told['none']}."
        )
    ]


def _listed(each: Sequence[Kept]) -> str:
    return ", ".join(f"{one.utility:+.0f}" for one in each)


def _answered(found: Sequence[Mask]) -> Word:
    """Return "in part", as it is on one small model, where there is an interval, else "open"."""
    return "in part" if found and all(mask.gain.seeds > 1 for mask in found) else "open"


def _scope(evidence: Evidence, found: Sequence[Mask]) -> str:
    """Return where the arms without a mask were measured, as their rows say it."""
    places = dict.fromkeys(
        f"{method} of `{row.profile}` in {storage} at lr {row.lr:g}, unlearned to {words(run.depth or END)}"
        for (_, method, storage), runs in runs_of(evidence, STUDY).items()
        for _, run in runs
        if not MASKED.fullmatch(method) and (row := run.get("forget_loss", "unlearned", method, storage)) and row.lr
    )
    seeds = sorted({mask.gain.seeds for mask in found})
    return f"{'; '.join(places)}; {' to '.join(map(str, seeds))} seed{'s' if seeds[-1] > 1 else ''}"


def told_of(mask: Mask) -> str:
    """Return a mask in a sentence."""
    return (
        f"Mask by {mask.part}, threshold {mask.threshold}: beside no mask at the same lr its gain is {mask.gain.text(_signed)}, what came back "
        f"{mask.back.text(_points)} of the added forget loss, M4 {mask.utility.text('{:+.0f}'.format)} points."
    )


def _signed(x: float) -> str:
    return f"{x:+.2f}"


def _points(x: float) -> str:
    return f"{100 * x:+.0f} %"

"""What each ingredient of the released code does to an update at 4 bits: from the runs of the study `released-code`.

for one in ingredients(Evidence(Path("reports/published"))):
    print(one.losses, one.mask, one.lr, one.storage, one.gain.value)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from unforgotten.reports.run.conjectures import LEAST_EFFECT
from unforgotten.reports.verdicts.claim import number, share
from unforgotten.reports.verdicts.cures import COARSE, Runs, back_of, runs_of, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds
from unforgotten.reports.verdicts.shapley import shapley

STUDY = "released-code"
SMALL = 1e-5
"""Learning rate of the released scripts without a mask."""
AS_RELEASED = "as released"
LARGE = 1e-4
"""That of SURE."""
FACTORS = {"bf16": "bf16 parameters", "lr": "the learning rate of 1e-05", "raw": "losses of raw logits"}
SHOWN = (*COARSE, "nf4-b64", "int8-row", "gptq-retain:int4-g64")


class Ingredients(NamedTuple):
    """One way of unlearning, over the seeds of the study.

    Attributes:
        method: name of the method, without its variant.
        retain: level of the study: its retain loss.
        raw: whether both losses are those of raw logits; of "as released" the forget loss alone is.
        mask: "none", "SURE", or "as released", where no mask works and the forget gradient counts twice.
        lr: learning rate.
        storage: storage arm.
        before, after: forget loss of the target and of the unlearned model, nats.
        gains: gain by format; a format without any is not there.
        gain: mean of the gains at int4 and fp4; None without any.
        back: share of the added forget loss that is gone at int4 and fp4; None where less than LEAST_EFFECT was added.
        utility: M4 of the unlearned model less that of the target, points.
        of_seed: that mean of the gains, of each seed.
    """

    method: str
    retain: str
    raw: bool
    mask: str
    lr: float
    storage: str
    before: Mean
    after: Mean
    gains: dict[str, Mean]
    gain: Mean | None
    back: Mean | None
    utility: Mean
    of_seed: Mapping[int, float]

    @property
    def losses(self) -> str:
        """Which losses it has, in words."""
        if self.mask == AS_RELEASED:
            return "raw logits, KL of the formula"
        return "raw logits" if self.raw else "formulas"

    @property
    def factors(self) -> frozenset[str]:
        """The ingredients of the released code that it has, of FACTORS."""
        has = {"bf16": self.storage == "bf16", "lr": self.lr == SMALL, "raw": self.raw}
        return frozenset(name for name, there in has.items() if there)


def ingredients(evidence: Evidence) -> list[Ingredients]:
    """Return the arms by retain loss, losses, mask, learning rate and storage; none where the study is not published."""
    found = (_arm(*at, runs) for at, runs in runs_of(evidence, STUDY).items())
    return sorted(found, key=lambda one: (one.retain, one.raw, one.mask != "none", one.mask, one.lr, one.storage))


def _arm(level: str, method: str, storage: str, runs: Runs) -> Ingredients:
    name = method.partition("+")[0]
    at = (method, storage)
    values = {
        fmt: [(seed, v) for seed, run in runs if (v := run.value("gain", "unlearned", *at, fmt)) is not None]
        for fmt in SHOWN
    }
    gains = {fmt: over_seeds(found) for fmt, found in values.items() if found}
    whole = {
        seed: sum(there) / len(COARSE)
        for seed, run in runs
        if len(there := [v for fmt in COARSE if (v := run.value("gain", "unlearned", *at, fmt)) is not None])
        == len(COARSE)
    }
    before = [(seed, value_of(run, "forget_loss", "target")) for seed, run in runs]
    after = [(seed, value_of(run, "forget_loss", "unlearned", *at)) for seed, run in runs]
    forgot = all(a - b >= LEAST_EFFECT for (_, a), (_, b) in zip(after, before, strict=True))
    backs = [(seed, back_of(run, *at, fmt)) for seed, run in runs for fmt in COARSE]
    utility = [(seed, value_of(run, "M4", "unlearned", *at) - value_of(run, "M4", "target")) for seed, run in runs]
    lr = next(row.lr for row in runs[0][1].rows if (row.method, row.storage) == at and row.lr)
    mask = AS_RELEASED if "as_released" in name else "SURE" if "_SURE" in name else "none"
    return Ingredients(
        *(name, level, "rawlogits" in name, mask, lr, storage, over_seeds(before), over_seeds(after), gains),
        *(
            over_seeds(whole.items()) if whole else None,
            over_seeds(backs) if forgot else None,
            over_seeds(utility),
            whole,
        ),
    )


class Shares(NamedTuple):
    """How much of what 4 bits swallow each ingredient is owed, for one retain loss.

    Attributes:
        retain: level of the study.
        best: gain at int4 and fp4 with none of the ingredients: fp32, losses of the formulas, the larger learning rate.
        worst: the same with all of them.
        shares: gain that each takes away, by the name of the factor; they sum to `best` less `worst`.
    """

    retain: str
    best: Mean
    worst: Mean
    shares: Mapping[str, Mean]


def shares_of(found: Sequence[Ingredients]) -> list[Shares]:
    """Return the shares for each retain loss whose eight arms without a mask were all measured."""
    told = []
    for retain in dict.fromkeys(one.retain for one in found):
        corners = {one.factors: one.of_seed for one in found if one.retain == retain and one.mask == "none"}
        if len(corners) < 2 ** len(FACTORS):
            continue
        seeds = sorted(set.intersection(*(set(of_seed) for of_seed in corners.values())))
        if not seeds:
            continue
        lost = [(seed, shapley({on: -of_seed[seed] for on, of_seed in corners.items()})) for seed in seeds]
        ends = (frozenset[str](), frozenset(FACTORS))
        best, worst = (over_seeds((seed, corners[end][seed]) for seed in seeds) for end in ends)
        told.append(
            Shares(retain, best, worst, {name: over_seeds((s, of[name]) for s, of in lost) for name in FACTORS})
        )
    return told


def ingredient_rows(found: Sequence[Ingredients]) -> list[tuple[str, ...]]:
    """Return a line for each arm: what it has, how deep it forgot, what 4 bits leave of it."""
    return [
        (
            *(one.method, one.losses, one.mask, f"{one.lr:g}", one.storage),
            f"{one.before.value:.2f} to {one.after.value:.2f}",
            *(one.gains[fmt].text(number) if fmt in one.gains else "–" for fmt in SHOWN),
            one.back.text(share) if one.back else "–",
            one.utility.text("{:+.0f}".format),
            str(one.utility.seeds),
        )
        for one in found
    ]


def ingredient_sentences(found: Sequence[Ingredients], predicted: str = "") -> list[str]:
    """Return what the arms say, a sentence each, and last what was predicted; none where the study is not published."""
    before = [f"Predicted before: {predicted}"] if predicted else []
    return [*_corners(found), *_shares(shares_of(found)), *_rate(found), *_masks(found), *_stuck(found), *before]


def _corners(found: Sequence[Ingredients]) -> Iterator[str]:
    """Yield what bf16 parameters and the small learning rate do alone and together, with and without raw logits."""
    for retain in dict.fromkeys(one.retain for one in found):
        gains = {one.factors: one.gain.text(number) for one in found if _plain(one, retain) and one.gain}
        asked = [frozenset(names) for names in (("bf16",), ("lr",), ("bf16", "lr"), ("bf16", "lr", "raw"))]
        if any(one not in gains for one in asked):
            continue
        rate, small, both, released = (gains[one] for one in asked)
        yield (
            f"With {retain}, the gain at int4 and fp4 is {rate} in bf16 at lr {LARGE:g}, {small} in fp32 at lr {SMALL:g}, {both} in bf16 at lr "
            f"{SMALL:g}, and {released} there with losses of raw logits."
        )


def _plain(one: Ingredients, retain: str) -> bool:
    return one.retain == retain and one.mask == "none"


def _rate(found: Sequence[Ingredients]) -> Iterator[str]:
    """Yield what of a mask at the larger learning rate is owed to the rate: the four arms in bf16, losses of the formulas."""
    for retain in dict.fromkeys(one.retain for one in found):
        gains = {
            (one.mask, one.lr): one.gain.text(number)
            for one in found
            if one.retain == retain and one.storage == "bf16" and not one.raw and one.gain
        }
        asked = [("none", SMALL), ("SURE", SMALL), ("none", LARGE), ("SURE", LARGE)]
        if all(one in gains for one in asked):
            plain, masked, larger, published = (gains[one] for one in asked)
            yield (
                f"What SURE adds, with {retain} in bf16: at lr {SMALL:g} the gain is {plain} without its mask and {masked} with it; at its own "
                f"lr, {LARGE:g}, {larger} without and {published} with."
            )


def _shares(found: Sequence[Shares]) -> Iterator[str]:
    for one in found:
        parts = ", ".join(f"{FACTORS[name]} {mean.text(_signed)}" for name, mean in one.shares.items())
        yield (
            f"With {one.retain} as retain loss, of the update the mean gain at int4 and fp4 is {one.best.text(number)} with none of the three "
            f"ingredients and {one.worst.text(number)} with all. What each takes away, by Shapley's value: {parts}."
        )


def _masks(found: Sequence[Ingredients]) -> Iterator[str]:
    for one in found:
        plain = next((p for p in found if _beside(one) == _beside(p) and p.mask == "none" and not p.raw), None)
        if one.mask != "SURE" or plain is None or one.gain is None or plain.gain is None:
            continue
        backs = f", {share(one.back.value)} and {share(plain.back.value)} came back" if one.back and plain.back else ""
        yield (
            f"{one.method}, {one.storage}, lr {one.lr:g}: gain {one.gain.value:.2f}, and {plain.gain.value:.2f} without a mask{backs}; M4 "
            f"{one.utility.value:+.0f} and {plain.utility.value:+.0f} points."
        )


def _beside(one: Ingredients) -> tuple[str, float, str]:
    return one.retain, one.lr, one.storage


def _stuck(found: Sequence[Ingredients]) -> Iterator[str]:
    stuck = [one for one in found if one.back is None]
    if stuck:
        names = ", ".join(f"{one.method} in {one.storage} at lr {one.lr:g}" for one in stuck)
        yield f"Forgot less than {LEAST_EFFECT} nats, so that nothing can come back: {names}."


def _signed(x: float) -> str:
    return f"{x:+.2f}"

"""What another optimizer keeps at 4 bits beside AdamW with an update of the same size against the step, seed by seed.

The study `optimizers` has sign descent and LoRA, `dead-zone` has AdamW at four rates, both in bf16 and otherwise alike. The size of an
update is its mean |delta| over the step of int4-g64, which is `expected_flips` a weight.

for one in compared(Evidence(Path("reports/published"))):
    print(one.name, one.gain and one.gain.text("{:+.2f}".format))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unforgotten.records.rows import Run
from unforgotten.reports.markdown import table
from unforgotten.reports.verdicts.claim import Table, number, share
from unforgotten.reports.verdicts.cures import ALIKE, COARSE, Kept, apart, folders_of, kept, runs_of, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds

STUDY, ADAMW = "optimizers", "dead-zone"
RULES = {"sign": "sign descent", "lora": "LoRA", "lora-shallow": "LoRA"}
"""Optimizers by the level of the study."""
MATCHED = 1.5
"""Factor between the sizes of two updates that are set beside each other."""


class Optimized(NamedTuple):
    """An optimizer at a rate, over its seeds, in bf16.

    Attributes:
        name: optimizer and learning rate.
        size: mean |delta| over the step of int4-g64, of each seed.
        loss: forget loss of the unlearned model.
        each: what each seed kept at int4 and fp4.
    """

    name: str
    size: dict[int, float]
    loss: Mean
    each: dict[int, Kept]


class Compared(NamedTuple):
    """An optimizer beside the AdamW whose update is nearest in size; no differences where none is within `MATCHED`.

    Attributes:
        name: optimizer and learning rate.
        beside: the AdamW.
        ratio: size of its update over that of AdamW's, of the means over seeds.
        gain, back, utility: gain, share that came back and M4 less those of AdamW, over the seeds that both have.
    """

    name: str
    beside: str
    ratio: float
    gain: Mean | None
    back: Mean | None
    utility: Mean | None

    @property
    def differs(self) -> bool | None:
        """Whether gain or share differ by more than `ALIKE`; None where the seeds cannot tell, or nothing stands beside it."""
        return None if self.gain is None or self.back is None else apart((self.gain, self.back))


def optimized(evidence: Evidence) -> list[Optimized]:
    """Return the optimizers, AdamW first; none where a study is not published."""
    found = []
    rules: Mapping[str, Mapping[str, str]] = {ADAMW: {"bf16": "AdamW"}, STUDY: RULES}
    for study, rule in rules.items():
        for (level, method, storage), runs in runs_of(evidence, study).items():
            if level not in rule or storage != "bf16":
                continue
            at = ("unlearned", method, storage)
            lr = next(row.lr for row in runs[0][1].rows if (row.method, row.storage) == at[1:] and row.lr)
            losses = [(seed, value_of(run, "forget_loss", *at)) for seed, run in runs]
            each = {seed: kept(run, method, storage) for seed, run in runs}
            sizes = {seed: _size(run, method, storage) for seed, run in runs}
            found.append(Optimized(f"{rule[level]} at lr {lr:g}", sizes, over_seeds(losses), each))
    return found


def _size(run: Run, method: str, storage: str) -> float:
    flips = value_of(run, "expected_flips", "unlearned", method, storage, COARSE[0])
    row = run.get("weight_std", "target")
    if row is None or row.n is None:
        raise ValueError(f"a run of {STUDY} must have the number of weights beside weight_std, got none")
    return flips / row.n


def compared(evidence: Evidence) -> list[Compared]:
    """Return every other optimizer beside the AdamW that is nearest in size."""
    found = optimized(evidence)
    plain = [one for one in found if one.name.startswith("AdamW")]
    return [_beside(one, plain) for one in found if plain and one not in plain]


def _beside(one: Optimized, plain: Sequence[Optimized]) -> Compared:
    def ratio(other: Optimized) -> float:
        return float(np.mean(list(one.size.values())) / np.mean(list(other.size.values())))

    nearest = min(plain, key=lambda other: abs(math.log(ratio(other))))
    seeds = [seed for seed in one.each if seed in nearest.each]
    if not seeds or not 1 / MATCHED <= ratio(nearest) <= MATCHED:
        return Compared(one.name, nearest.name, ratio(nearest), None, None, None)
    gain, back, utility = (
        over_seeds((seed, getattr(one.each[seed], what) - getattr(nearest.each[seed], what)) for seed in seeds)
        for what in ("gain", "back", "utility")
    )
    return Compared(one.name, nearest.name, ratio(nearest), gain, back, utility)


def optimizer_sentences(evidence: Evidence) -> list[str]:
    """Return a sentence on each optimizer beside AdamW; none where the study is not published."""
    return [_told(one) for one in compared(evidence)]


def optimizer_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Return the table of what each optimizer keeps; none where the study is not published."""
    found = optimized(evidence) if compared(evidence) else []
    about = "NPO_GDR in bf16 by other optimizers, at int4 and fp4 (means of int4-g64 and fp4-b64)"
    columns = (
        "optimizer",
        "forget loss",
        "mean abs(delta) over the step",
        "gain",
        "came back of the forget loss",
        "seeds",
    )
    return (Table(about, table(columns, [_line(one) for one in found])),) if found else ()


def _line(one: Optimized) -> tuple[str, ...]:
    gain, back = (over_seeds((seed, getattr(of, what)) for seed, of in one.each.items()) for what in ("gain", "back"))
    size = over_seeds(one.size.items())
    return (
        one.name,
        one.loss.text(number),
        size.text("{:.3f}".format),
        gain.text(number),
        back.text(share),
        str(gain.seeds),
    )


def _told(one: Compared) -> str:
    name = one.name[0].upper() + one.name[1:]
    if one.gain is None or one.back is None or one.utility is None:
        return f"{name}: no AdamW has an update of its size, which is {one.ratio:.2f} times that of {one.beside}, the nearest."
    word = {True: "other", False: "alike", None: "the seeds cannot tell"}[one.differs]
    return (
        f"{name} beside {one.beside}, its update {one.ratio:.2f} times as large: gain {one.gain.text('{:+.2f}'.format)}, what came back "
        f"{one.back.text(lambda x: f'{100 * x:+.0f} %')} of the added forget loss, M4 {one.utility.text('{:+.0f}'.format)} points; {word} (by more "
        f"than {ALIKE})."
    )


def optimizer_folders(evidence: Evidence) -> tuple[str, ...]:
    """Return the folders that the comparison rests on; none where the study is not published."""
    own = folders_of(evidence, STUDY)
    return (*own, *folders_of(evidence, ADAMW)) if own else ()

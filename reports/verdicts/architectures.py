"""Whether what bf16 parameters lose hangs on the architecture.

From the runs of the study `architectures`: one small model of random weights for each, unlearned in fp32 and in bf16.

for one in architectures(Evidence(Path("reports/published"))):
    print(one.name, one.storage, one.gain.value)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unforgotten.reports.run.conjectures import LEAST_EFFECT
from unforgotten.reports.verdicts.claim import WHOLE, Claim, Word, number, share
from unforgotten.reports.verdicts.cures import COARSE, Runs, back_of, folders_of, runs_of, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds

STUDY = "architectures"
DYNAMIC, STATIC = "dynamic:int8-row", "int8-row"


class Architecture(NamedTuple):
    """An architecture unlearned in one storage arm, over the seeds of the study.

    Attributes:
        name: name of the base.
        method: unlearning method.
        storage: storage arm.
        after: forget loss of the unlearned model, nats.
        gain: gain at int4 and fp4.
        back: share of the added forget loss that is gone at int4 and fp4.
        dynamic: the same where weights are int8 by row and inputs int8 by token; None where less than LEAST_EFFECT was added, or
            the format was not measured.
        static: the same with the inputs as they are.
    """

    name: str
    method: str
    storage: str
    after: Mean
    gain: Mean
    back: Mean
    dynamic: Mean | None
    static: Mean | None

    @property
    def whole(self) -> bool:
        """Whether 4 bits leave the whole update."""
        return abs(self.gain.value - 1) <= WHOLE


def architectures(evidence: Evidence) -> list[Architecture]:
    """Return them in the order of the study's folders; none where it is not published."""
    return [_one(level, method, storage, runs) for (level, method, storage), runs in runs_of(evidence, STUDY).items()]


def _one(level: str, method: str, storage: str, runs: Runs) -> Architecture:
    at = (method, storage)
    added, back = [], []
    int8: dict[str, list[tuple[int, float]]] = {DYNAMIC: [], STATIC: []}
    for seed, run in runs:
        before, after = value_of(run, "forget_loss", "target"), value_of(run, "forget_loss", "unlearned", *at)
        added.append((seed, after - before))
        back += [(seed, back_of(run, *at, f)) for f in COARSE]
        for fmt, found in int8.items():
            found += [(seed, back_of(run, *at, fmt))] if fmt in run.formats else []
    gains = [(seed, value_of(run, "gain", "unlearned", *at, f)) for seed, run in runs for f in COARSE]
    losses = over_seeds((seed, value_of(run, "forget_loss", "unlearned", *at)) for seed, run in runs)
    forgot = all(one >= LEAST_EFFECT for _, one in added)
    told = (over_seeds(found) if found and forgot else None for found in int8.values())
    return Architecture(level, method, storage, losses, over_seeds(gains), over_seeds(back), *told)


def architecture_claim(evidence: Evidence) -> Claim:
    """Return the verdict on the paper's next check 1."""
    return _across(evidence, architectures(evidence))


def gain_sentences(found: Sequence[Architecture]) -> list[str]:
    """Return the gains of all architectures, bf16 and fp32, in one sentence; none where either was not measured."""
    gains = {
        storage: ", ".join(f"{one.name} {one.gain.text(number)}" for one in found if one.storage == storage)
        for storage in ("bf16", "fp32")
    }
    if not all(gains.values()):
        return []
    return [
        (
            f"In other architectures, of 2 to 5 M weights, gain at int4 and fp4 with bf16 parameters: {gains['bf16']}; with fp32 masters: "
            f"{gains['fp32']} (next check 1)."
        )
    ]


def _across(evidence: Evidence, found: Sequence[Architecture]) -> Claim:
    names = list(dict.fromkeys(one.name for one in found))
    bases = ", ".join(name for name in evidence.runs if not name.startswith("tiny"))
    statement = "Does it hold across architectures?"
    if not found:
        llamas = ("All are decoders in the style of Llama; GPT-NeoX, Qwen and mixtures of experts are not measured.",)
        return Claim("Next check 1", statement, "in part", f"measured on a 2.2 M Llama from scratch, {bases}", llamas)
    holds = {
        name: all(
            one.whole == (one.storage == "fp32") for one in found if one.name == name and one.storage != "bf16-sr"
        )
        for name in names
    }
    seeds = min(one.gain.seeds for one in found)
    back = {
        name: all(one.back.low > 0 for one in found if one.name == name and one.storage == "bf16") for name in names
    }
    whole = all(holds.values()) and all(back.values()) and seeds > 1
    word: Word = "refuted" if not any(holds.values()) else "confirmed" if whole else "in part"
    told_of_memory = ", ".join(name for name in names if back[name]) or "none"
    yes, no = ([name for name in names if holds[name] is held] for held in (True, False))
    scope = (
        f"beside Llamas: fp32 passes the update and bf16 does not in {', '.join(yes) or 'none'}"
        + (f", other in {', '.join(no)}" if no else "")
        + f"; forget loss comes back after bf16, the interval off 0, in {told_of_memory}"
        + f"; {counted_seeds(seeds, max(one.gain.seeds for one in found))} each, models of 2 to 5 M weights"
    )
    told = tuple(
        f"{one.name}, {one.method}, {one.storage}, forget loss {one.after.value:.2f}: gain at int4 and fp4 {one.gain.text(number)}, "
        f"{one.back.text(share)} of the added forget loss came back."
        for one in found
    )
    return Claim(
        "Next check 1",
        statement,
        word,
        scope,
        (*told, f"Llamas: {bases} and `tiny` stand under C2."),
        evidence.predicted(STUDY),
        rows=folders_of(evidence, STUDY),
    )


def counted_seeds(count: int, most: int | None = None) -> str:
    """Return a number of seeds in words, or from how many to how many."""
    told = f"{count}" if most in (None, count) else f"{count} to {most}"
    return "one seed" if told == "1" else f"{told} seeds"

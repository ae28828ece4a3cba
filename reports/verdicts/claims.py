"""Verdicts on C1-C4 and on what the paper leaves open, each by a rule that stands here, from the published rows.

Intervals are over seeds, by Student's t at 95 %. What the words mean stands in `claim.py`, and what masks buy in `masks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unforgotten.reports.run.conjectures import CONFIRMED, REFUTED, collapse_cases
from unforgotten.reports.verdicts.architectures import architecture_claim, architectures, gain_sentences
from unforgotten.reports.verdicts.claim import WHOLE, Claim, Table, number, share
from unforgotten.reports.verdicts.collapsed import STUDY as COLLAPSE
from unforgotten.reports.verdicts.collapsed import collapse_sentences
from unforgotten.reports.verdicts.cures import STUDY as CURES
from unforgotten.reports.verdicts.cures import cures, folders_of, kept, runs_of
from unforgotten.reports.verdicts.deployed import deployed_tables
from unforgotten.reports.verdicts.evidence import (
    COARSE,
    FOUR_BITS,
    TINY,
    Evidence,
    Mean,
    StudyRow,
    by_gating,
    came_back,
    seeded,
)
from unforgotten.reports.verdicts.inputs import inputs_claim
from unforgotten.reports.verdicts.masks import mask_claims, masks
from unforgotten.reports.verdicts.phased import STUDY as PHASE
from unforgotten.reports.verdicts.phased import phase_sentences
from unforgotten.reports.verdicts.real_bases import STUDY as REAL_BASES
from unforgotten.reports.verdicts.real_bases import real_tables
from unforgotten.reports.verdicts.scaling import arm_table, format_table, scaled
from unforgotten.theory.calculators.bound import Question, bound

DEAD_ZONE, REQUANTIZE, QUANTIZERS, HELD_OUT = "dead-zone", "requantize", "quantizers", "held-out"
BITS_AND_BLOCKS, CLAMPED = "bits-and-blocks", "clamped-steps"
"""Studies of runs of which the page has a table."""
SMALL_RATES, STD, STEPS = (1e-5, 1e-6, 3e-7, 1e-7), 0.02, 500
"""Of the nominal law at 8 bits: rates, spread of normal weights, steps."""
DITHERED = "int4-g64-dither"
PLAIN = "int4-g64"


def claims(evidence: Evidence) -> list[Claim]:
    """Return the verdicts in the order of the page."""
    masked = mask_claims(evidence)
    limit, shapes, dynamic = _open_questions(evidence)
    return [
        *(_collapse(evidence), _dead_zone(evidence), masked["C3"], _cures(evidence)),
        *(limit, masked["Open question 2"], masked["Open question 3"], shapes, dynamic, masked["Next check 3"]),
    ]


def _collapse(evidence: Evidence) -> Claim:
    cases = {name: collapse_cases(evidence.run(name)) for name in evidence.runs if name in TINY}
    intact, broken = (sum(found.count(word) for found in cases.values()) for word in (CONFIRMED, REFUTED))
    count = sum(map(len, cases.values()))
    where = [name for name, found in cases.items() if REFUTED in found]
    fp32 = seeded(evidence.cells("fp32", "", FOUR_BITS), by_gating)
    requantized = _by_format(
        evidence, REQUANTIZE, "A target that was itself published in int4-g64, unlearned with fp32 masters"
    )
    return Claim(
        name="C1",
        statement="Equal codes do not undo unlearning: where weights lie at random places in their cells, the surviving part of "
        "the update does what the whole update does.",
        word="confirmed" if not broken else "refuted" if broken > 0.1 * count else "in part",
        scope="a 2.2 M Llama on a fictional corpus, five seeds, six methods, five formats",
        found=(
            (
                f"{intact} of {count} cases in scope are intact and {broken} are clear counterexamples ({', '.join(where) or 'none'}): "
                f"{'as a law without exception it is refuted' if broken else 'no exception was found'}."
            ),
            f"With fp32 masters the rounding cells of 4 bits bring back {fp32.text(share)} of the forget loss that unlearning added.",
            *collapse_sentences(evidence),
            *(["Where weights lie in the middle of their cells it does not hold (table)."] if requantized else []),
        ),
        before=evidence.predicted(REQUANTIZE),
        tables=requantized,
        rows=(
            *(*TINY, "functional-gain"),
            *((COLLAPSE,) if evidence.study(COLLAPSE) else ()),
            *folders_of(evidence, REQUANTIZE),
        ),
    )


def _dead_zone(evidence: Evidence) -> Claim:
    fp32 = evidence.cells("fp32", "", FOUR_BITS)
    gains = {family: seeded(evidence.cells("bf16", family, COARSE), _gain) for family in ("GA", "NPO")}
    nf4 = seeded(evidence.cells("bf16", "", ["nf4-b64"]), _gain)
    backs = {family: seeded(evidence.cells("bf16", family, COARSE), came_back) for family in ("GA", "NPO")}
    whole, back = seeded(fp32, _gain), seeded(fp32, came_back)
    update = abs(whole.value - 1) <= WHOLE and all(gain.high < 1 - WHOLE for gain in gains.values())
    memory = all(found.low > 0 for found in backs.values())
    return Claim(
        name="C2",
        statement="The published failure is a dead zone: bf16 parameters at a small learning rate move only weights near zero, and the "
        "wide cells of int4 and fp4 around zero swallow those; fp32 masters, int8 and largely nf4 are free of it.",
        word="confirmed" if update and memory else "in part" if update else "refuted",
        scope=f"{'of the update on every seed' if update else 'not even of the update'}; {_memory_scope(backs)}",
        found=(
            (
                f"Gain at 4 bits, fp32 masters: {whole.text(number)}. bf16 parameters at int4 and fp4: GA {gains['GA'].text(number)}, NPO "
                f"{gains['NPO'].text(number)}; at nf4, all methods, {nf4.text(number)}."
            ),
            (
                f"Of the forget loss that unlearning added, int4 and fp4 take back, bf16 parameters: NPO {backs['NPO'].text(share)}, GA "
                f"{backs['GA'].text(share)} (below 0: the quantized model forgets further); fp32 masters at 4 bits: {back.text(share)}."
            ),
            "Why the two differ: what counts is the gain along the gradient of the forget loss (T20), not that along the update.",
            *phase_sentences(evidence),
            _eight_bits(),
            *gain_sentences(architectures(evidence)),
        ),
        tables=(*_held_out(evidence), *_clamped(evidence), *real_tables(evidence)),
        before=" ".join(
            filter(None, (_forecast(evidence), _predicted(evidence, DEAD_ZONE, CLAMPED, HELD_OUT, REAL_BASES)))
        ),
        rows=(
            *("functional-gain", "forecast", *([PHASE] if evidence.study(PHASE) else []), *TINY),
            *(name for name in evidence.runs if not name.startswith("tiny")),
            *folders_of(evidence, DEAD_ZONE),
            *folders_of(evidence, CLAMPED),
            *folders_of(evidence, HELD_OUT),
            *folders_of(evidence, REAL_BASES),
        ),
    )


def _eight_bits() -> str:
    """Return what the nominal law expects of 8 bits at rates that are given for other benchmarks, in a sentence."""
    gains = {
        (name, lr): bound(Question(name, STD, lr, STEPS)).gain for name in ("int8-row", "fp8-row") for lr in SMALL_RATES
    }
    told = "; ".join(
        f"{name} {', '.join(f'{number(gain or 0.0)} at lr {lr:g}' for (of, lr), gain in gains.items() if of == name)}"
        for name in ("int8-row", "fp8-row")
    )
    return (
        f"Eight bits are free of it at these rates alone. What the nominal law expects to pass of a bf16 update of {STEPS} steps, weights normal "
        f"with std {STD:g}: {told} (`unforgotten bound`; not measured)."
    )


def _held_out(evidence: Evidence) -> tuple[Table, ...]:
    about = "On seeds that nobody had looked at, gain, and share of the added forget loss that cells take back"
    found = scaled(evidence, HELD_OUT)
    return (Table(about, arm_table(found)),) if found else ()


def _clamped(evidence: Evidence) -> tuple[Table, ...]:
    """Return the table of AdamW whose steps are at most lr, beside AdamW as it is; none where the study is not published."""
    cut = scaled(evidence, CLAMPED)
    plain = [one for one in scaled(evidence, DEAD_ZONE) if one.method in {other.method for other in cut}]
    named = (one._replace(method=f"{one.method}, no step above lr") for one in cut)
    found = sorted([*plain, *named], key=lambda one: one.method)
    about = (
        "AdamW as it is, and with every step cut to lr: gain, and share of the added forget loss that cells take back"
    )
    return (Table(about, format_table(found)),) if cut else ()


def _by_format(evidence: Evidence, study: str, about: str) -> tuple[Table, ...]:
    """Return the table of a study's runs by format; none where it is not published."""
    found = scaled(evidence, study)
    return (
        (Table(f"{about}: gain, and share of the added forget loss that cells take back", format_table(found)),)
        if found
        else ()
    )


def _predicted(evidence: Evidence, *studies: str) -> str:
    """Return what several studies predicted, and of which each is."""
    told = {study: evidence.predicted(study) for study in studies}
    return " ".join(f"*{study}*: {text}" for study, text in told.items() if text)


def _memory_scope(backs: Mapping[str, Mean]) -> str:
    """Return after which methods memory comes back, and after which it falls further."""
    back = [name for name, found in backs.items() if found.low > 0]
    further = [name for name, found in backs.items() if found.high < 0]
    told = f"memory comes back in part after {' and '.join(back) or 'no method'}"
    return told + (f", and falls further after {' and '.join(further)}" if further else "")


def _gain(row: StudyRow) -> float:
    return float(row["gain"])


def _forecast(evidence: Evidence) -> str:
    unseen = [row for row in evidence.study("forecast") if not row["looked_at"]]
    if not unseen:
        return ""
    misses = [abs(row["predicted"] - row["measured"]) for row in unseen]
    seen = {(r["method"], r["seed"], r["format"]): r for r in evidence.gains if r["storage"] == "bf16"}
    pairs = [(row, seen[key]) for row in unseen if (key := (row["method"], row["seed"], row["format"])) in seen]
    right = sum((1 - row["functional_gain"]) * came_back(other) > 0 for row, other in pairs)
    return (
        f"from the gradients of a float32 pilot, for {len(unseen)} cells of methods that were not looked at when the rule was made, the "
        f"gain was foretold with a median miss of {np.median(misses):.2f}, the largest {max(misses):.2f}; the sign of what came back in "
        f"{right} of {len(pairs)}."
    )


def _cures(evidence: Evidence) -> Claim:
    bf16 = [row for row in evidence.gains if row["storage"] == "bf16"]
    plain, dithered = ([row for row in bf16 if row["format"] == name] for name in (PLAIN, DITHERED))
    gains = [seeded(rows, _gain) for rows in (plain, dithered)]
    sizes = [seeded(rows, lambda row: abs(by_gating(row))) for rows in (plain, dithered)]
    masters = seeded(evidence.cells("fp32", "", FOUR_BITS), _gain)
    found = [
        f"fp32 masters: gain {masters.text(number)} at 4 bits (five seeds, six methods).",
        (
            f"Dithered rounding of the same bf16 models at int4 in groups of 64: gain {gains[0].text(number)} becomes {gains[1].text(number)}, "
            f"and what the cells move the forget loss by falls from {sizes[0].text(share)} to {sizes[1].text(share)} of what was forgotten."
        ),
        *_larger_rate(evidence),
    ]
    works = [masters, gains[1]]
    good = all(abs(gain.value - 1) <= WHOLE for gain in works)
    return Claim(
        name="C4",
        statement="Cures follow from the theory: fp32 masters or stochastic rounding; moving an update out of its cells; dithered or "
        "delta-aware quantizers.",
        word="in part" if good else "refuted",
        scope=_cured(evidence),
        found=tuple(found),
        before=_predicted(evidence, QUANTIZERS, CURES),
        tables=(*_by_format(evidence, QUANTIZERS, "Over quantizers"), *deployed_tables(evidence)),
        rows=(
            *("functional-gain", "deployed-files"),
            *folders_of(evidence, "sure"),
            *folders_of(evidence, QUANTIZERS),
            *folders_of(evidence, CURES),
        ),
    )


def _cured(evidence: Evidence) -> str:
    """Return which ways of unlearning keep the update at int4 and fp4 at every depth with nothing back, and which do not."""
    found = cures(evidence)
    good: dict[str, list[bool]] = {}
    for cure in found:
        whole = abs(cure.gain.value - 1) <= WHOLE and cure.back.value <= WHOLE
        good.setdefault(f"{cure.name} at lr {cure.lr:g}", []).append(whole)
    told = "on small models: fp32 masters and dithered rounding over five seeds"
    seeds = max((cure.gain.seeds for cure in found), default=0)
    for words, word in ((f"keep the update at int4 and fp4 (table below; {seeds} seeds)", True), ("do not", False)):
        names = [name for name, each in good.items() if all(each) is word]
        told += f"; {', '.join(names)} {words}" if names else ""
    return told


def _larger_rate(evidence: Evidence) -> Iterator[str]:
    """Yield what the arm without a mask of the study `sure` says of a larger learning rate, seed by seed."""
    for mask in masks(evidence)[:1]:
        gains, points = ([getattr(one, what) for one in mask.plain] for what in ("gain", "utility"))
        yield (
            f"A larger learning rate (NPO_GDR, bf16, lr 5e-05, alpha 1), seed by seed: gain at int4 and fp4 {', '.join(map(number, gains))}, but M4 less "
            f"that of the target {', '.join(f'{x:+.0f}' for x in points)} points.{_masters_too(evidence)}"
        )


def _masters_too(evidence: Evidence) -> str:
    """Return what fp32 masters at the small rate do to M4 on the same seeds, which tells whether the larger rate is to blame."""
    runs = runs_of(evidence, "released-code").get(("KLR", "NPO_KLR+slow", "fp32"), [])
    told = ", ".join(f"{kept(run, 'NPO_KLR+slow', 'fp32').utility:+.0f} on seed {seed}" for seed, run in runs)
    return f" NPO_KLR with fp32 masters at lr 1e-05 and alpha 1 has {told}." if told else ""


def _open_questions(evidence: Evidence) -> Sequence[Claim]:
    limit = Claim(
        name="Open question 1",
        statement="What is the limit of recovery by quantization, and how does it scale with precision?",
        word="in part",
        scope="proved for gating where weights lie at random places in their cells (T18), with dither without that condition (T19)",
        found=(
            (
                "With high probability gating brings back a small share once some thousands of codes change, however many stay equal; "
                "the bound grows with the step. Outside of that condition, as after bf16 training, it does not hold, and there C2 speaks."
            ),
            "The base shift, which moves the target as well, has no bound here.",
        ),
        before=evidence.predicted(BITS_AND_BLOCKS),
        tables=_by_format(evidence, BITS_AND_BLOCKS, "Over bits and blocks"),
        rows=folders_of(evidence, BITS_AND_BLOCKS),
    )
    return (limit, architecture_claim(evidence), inputs_claim(evidence))

"""Verdicts on the conjectures C1 and C2 (`theory/README.md#conjectures`), as far as the rows of one run go, by fixed rules.

In goes a run; out come its conjectures, each with a verdict, its scope and the predictions that it was judged by:

    c1, c2 = conjectures(read_run(Path("reports/published/tiny-seed0")))
    c1.verdict, [prediction.found for prediction in c1.predictions]

Three verdicts: "confirmed here", "refuted here", "open here". A universal statement is refuted by one clear
counterexample. Where a rule compares an interval with a limit it is the row's 95 % interval; a counterexample has
to be clear at CLEAR standard errors, so that chance gives one in fewer than 1 of 50 runs of 20 cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unforgotten.records.rows import Row, Run, select
from unforgotten.reports.labels import estimate, family, storage_label

Verdict = Literal["confirmed here", "refuted here", "open here"]
CONFIRMED: Verdict = "confirmed here"
REFUTED: Verdict = "refuted here"
OPEN: Verdict = "open here"
POSITION_LIMIT = 0.01  # distance of the weights' places in their cells from uniform
FLIPS_LIMIT = 0.02  # distance of observed over expected code flips from 1
MARGIN = 0.1  # of the effect of unlearning, of a gain of 1, of a recovered fraction
LEAST_EFFECT = 0.1  # nats of forget loss; less than this is no unlearning
CLEAR = 3.29
NOT_TESTED = "not tested by this run"


@dataclass(frozen=True)
class Prediction:
    """One testable part of a conjecture."""

    statement: str
    rule: str
    found: str
    verdict: Verdict
    tested: bool = True


@dataclass(frozen=True)
class Conjecture:
    """A conjecture with the verdict that follows from its predictions."""

    name: str
    short: str
    statement: str
    rule: str
    scope: str
    verdict: Verdict
    predictions: tuple[Prediction, ...]


def conjectures(run: Run) -> tuple[Conjecture, ...]:
    """Judge C1 and C2 by the rows of a run."""
    return (_c1(run), _c2(run))


def _c1(run: Run) -> Conjecture:
    predictions = tuple(_intact(run, s) for s in run.storages)
    rows = select(run.rows, metric="gating_effect")
    inside = sum(_intact_case(run, row) is not None for row in rows)
    return Conjecture(
        "C1",
        "weights that keep their codes are not what undoes unlearning",
        "Where weights lie at random places in their rounding cells, putting the surviving part D of the update in "
        "place of the whole update leaves the unlearning intact, however many codes stay equal.",
        f"A case is intact when the 95 % interval of its gating effect lies within ±{MARGIN:.0%} of the whole effect of "
        f"unlearning on the forget loss, and a clear counterexample when {CLEAR} standard errors lie outside. In scope "
        f"are cases where the rows speak for random places (position distance at most {POSITION_LIMIT}, observed over expected "
        f"code flips within {FLIPS_LIMIT:g} of 1, a gain within {MARGIN:g} of 1) and unlearning raised the forget loss by {LEAST_EFFECT} nats or more. One clear counterexample refutes; all cases in scope intact confirm; else open.",
        f"{inside} of {len(rows)} cases in scope",
        _overall(predictions),
        predictions,
    )


def collapse_cases(run: Run) -> list[Verdict]:
    """Return the verdict on each case of a run that is in the scope of C1."""
    rows = select(run.rows, metric="gating_effect")
    found: list[Verdict | None] = [_intact_case(run, row) for row in rows]
    return [verdict for verdict in found if verdict is not None]


def _intact(run: Run, storage: str) -> Prediction:
    rows = select(run.rows, metric="gating_effect", storage=storage)
    judged = [verdict for row in rows if (verdict := _intact_case(run, row)) is not None]
    intact, broken = judged.count(CONFIRMED), judged.count(REFUTED)
    verdict = REFUTED if broken else CONFIRMED if judged and intact == len(judged) else OPEN
    outside = len(rows) - len(judged)
    found = f"no case in scope, {outside} out of scope"
    if judged:
        found = f"{intact} of {len(judged)} cases intact, {broken} clear counterexamples; {outside} out of scope"
    return Prediction(
        f"{_capital(storage_label(storage))}: D does what the whole update does",
        "Every case in scope is intact; refuted by one clear counterexample.",
        found if rows else NOT_TESTED,
        verdict,
        tested=bool(judged),
    )


def _intact_case(run: Run, row: Row) -> Verdict | None:
    """Judge one case of C1; return None where it is out of scope."""
    before = run.value("forget_loss", "target")
    after = run.value("forget_loss", "unlearned", row.method, row.storage)
    if before is None or after is None or row.value is None or not _at_random(run, row):
        return None
    if after - before < LEAST_EFFECT:
        return None
    margin = MARGIN * (after - before)
    if row.bounds is not None and -margin <= row.bounds[0] and row.bounds[1] <= margin:
        return CONFIRMED
    clear = row.stderr is not None and abs(row.value) - CLEAR * row.stderr > margin
    return REFUTED if clear else OPEN


def _at_random(run: Run, row: Row) -> bool:
    """Whether the rows speak for assumption U: places in cells spread evenly, and independent of the update.

    Even places alone do not: an update that lives inside wide cells can cover them evenly and never reach a threshold.
    Then fewer codes flip than T6 expects of U, or the gain is far from the 1 of T7. The limit on the flips was set on
    2026-11-24 after the rows of tiny seed 0, and before those of any later seed.
    """
    subject = row.place
    distance, gain = run.value("position_distance", *subject), run.value("gain", *subject)
    flips, expected = run.value("code_flips", *subject), run.value("expected_flips", *subject)
    if distance is None or gain is None or flips is None or not expected:
        return False
    even = distance <= POSITION_LIMIT and abs(flips / expected - 1) <= FLIPS_LIMIT
    return even and abs(gain - 1) <= MARGIN


def _c2(run: Run) -> Conjecture:
    predictions = (
        _whole_gain(run, "fp32", None, "With fp32 master weights the whole update survives, at every format"),
        _no_recovery(run, "fp32", None, "With fp32 master weights nothing comes back, at any format"),
        _swallowed(run),
        _comes_back(run),
        _whole_gain(run, "bf16", ("int8",), "With bf16 parameters int8 still passes the whole update"),
        _no_recovery(run, "bf16", ("int8",), "With bf16 parameters nothing comes back at int8"),
        _nf4_departs_less(run),
        _untested(
            "With bf16 parameters a larger learning rate ends the recovery",
            "Needs runs at several learning rates side by side.",
        ),
        _gptq(run),
        *_without_dead_zone(run),
    )
    return Conjecture(
        "C2",
        "bf16 training moves only small weights, and int4 and fp4 swallow those",
        "Training in pure bf16 at a small learning rate moves only weights near zero; the wide cells of int4 and fp4 "
        "around zero swallow such an update, so that knowledge comes back. Fp32 master weights, int8 and, in part, nf4 "
        "are free of it.",
        "Refuted when one of its predictions is; confirmed when every tested one is and the first four were tested; "
        "else open.",
        f"{sum(p.tested for p in predictions)} of {len(predictions)} predictions tested",
        _c2_verdict(predictions),
        predictions,
    )


def _without_dead_zone(run: Run) -> tuple[Prediction, ...]:
    """Return what C2 predicts of the arm that rounds bf16 at random; nothing for a run without that arm."""
    if "bf16-sr" not in run.storages:
        return ()
    arm = f"With {storage_label('bf16-sr')}"
    return (
        _whole_gain(run, "bf16-sr", None, f"{arm} the whole update survives, at every format"),
        _no_recovery(run, "bf16-sr", None, f"{arm} nothing comes back, at any format"),
    )


def _c2_verdict(predictions: tuple[Prediction, ...]) -> Verdict:
    complete = all(p.tested for p in predictions[:4])
    verdict = _overall(predictions)
    return OPEN if verdict == CONFIRMED and not complete else verdict


def _overall(predictions: Sequence[Prediction]) -> Verdict:
    verdicts = [p.verdict for p in predictions if p.tested]
    if REFUTED in verdicts:
        return REFUTED
    return CONFIRMED if verdicts and set(verdicts) == {CONFIRMED} else OPEN


def _cells(run: Run, metric: str, storage: str, families: tuple[str, ...] | None) -> list[Row]:
    """Return the cells of a storage; of families, those that round by the weights alone.

    Calibrated formats count in no family since 2026-11-28, after the rows of smollm2-seed0, the first run that had any: what C2 says
    of int4 and fp4 it says of their cells around zero, and GPTQ has a prediction of its own.
    """
    rows = [row for row in select(run.rows, metric=metric, storage=storage, model="unlearned") if row.value is not None]
    return [row for row in rows if not families or (family(row.format) in families and row.calibration is None)]


def _gptq(run: Run) -> Prediction:
    statement = "GPTQ, which compensates errors, brings little back"
    rows = [row for row in _cells(run, "gating_effect", "bf16", None) if row.format.startswith("gptq")]
    before = run.value("forget_loss", "target")
    if not rows or before is None:
        return _untested(statement, "Needs GPTQ.")
    rule = (
        f"With bf16 parameters the gating effect ends at or below {MARGIN:.0%} of the loss that unlearning added in every case; "
        "refuted by one that begins above."
    )
    added = [(run.value("forget_loss", "unlearned", row.method, row.storage) or before) - before for row in rows]
    cases = [(row.bounds, MARGIN * more) for row, more in zip(rows, added, strict=True) if row.bounds is not None]
    none = [high <= most for (_, high), most in cases]
    verdict = REFUTED if any(low > most for (low, _), most in cases) else CONFIRMED if none and all(none) else OPEN
    return Prediction(statement, rule, f"{sum(none)} of {len(rows)} cases; {_extremes(rows)}", verdict)


def _whole_gain(run: Run, storage: str, families: tuple[str, ...] | None, statement: str) -> Prediction:
    rows = _cells(run, "gain", storage, families)
    inside = [row for row in rows if row.value is not None and abs(row.value - 1) <= MARGIN]
    rule = f"The gain lies within {1 - MARGIN:g} and {1 + MARGIN:g} in every case; refuted by one outside."
    if not rows:
        return _untested(statement, rule)
    found = f"{len(inside)} of {len(rows)} cases inside; {_extremes(rows)}"
    return Prediction(statement, rule, found, CONFIRMED if len(inside) == len(rows) else REFUTED)


def _no_recovery(run: Run, storage: str, families: tuple[str, ...] | None, statement: str) -> Prediction:
    rows = _cells(run, "rho_M1", storage, families)
    rule = f"The interval of ρ(M1) ends at or below {MARGIN:g} in every case; refuted by one that begins above."
    if not rows:
        return _untested(statement, rule)
    none = [row for row in rows if row.bounds and row.bounds[1] <= MARGIN]
    some = [row for row in rows if row.bounds and row.bounds[0] > MARGIN]
    verdict = REFUTED if some else CONFIRMED if len(none) == len(rows) else OPEN
    return Prediction(statement, rule, f"{len(none)} of {len(rows)} cases; {_extremes(rows)}", verdict)


def _swallowed(run: Run) -> Prediction:
    statement = "With bf16 parameters int4 and fp4 swallow part of the update"
    rule = f"The gain is below {1 - MARGIN:g} in every case; refuted when it is in none."
    rows = _cells(run, "gain", "bf16", ("int4", "fp4"))
    if not rows:
        return _untested(statement, rule)
    lost = [row for row in rows if row.value is not None and row.value < 1 - MARGIN]
    verdict = CONFIRMED if len(lost) == len(rows) else OPEN if lost else REFUTED
    return Prediction(statement, rule, f"{len(lost)} of {len(rows)} cases; {_extremes(rows)}", verdict)


def _comes_back(run: Run) -> Prediction:
    statement = "With bf16 parameters verbatim memory comes back in part at int4 and fp4"
    rule = f"The interval of ρ(M1) lies above 0 in every case; refuted when all of them end at or below {MARGIN:g}."
    rows = _cells(run, "rho_M1", "bf16", ("int4", "fp4"))
    if not rows:
        return _untested(statement, rule)
    back = [row for row in rows if row.bounds and row.bounds[0] > 0]
    none = [row for row in rows if row.bounds and row.bounds[1] <= MARGIN]
    verdict = CONFIRMED if len(back) == len(rows) else REFUTED if len(none) == len(rows) else OPEN
    return Prediction(statement, rule, f"{len(back)} of {len(rows)} cases; {_extremes(rows)}", verdict)


def _nf4_departs_less(run: Run) -> Prediction:
    statement = "With bf16 parameters nf4 departs less from a gain of 1 than int4 and fp4"
    rule = "For every method, nf4's gain is nearer to 1 than that of each int4 and fp4 format; refuted when for none."
    judged = [order for m in run.methods if (order := _nf4_is_nearest(run, m)) is not None]
    if not judged:
        return _untested(statement, rule)
    verdict = CONFIRMED if all(judged) else OPEN if any(judged) else REFUTED
    rows = _cells(run, "gain", "bf16", ("nf4",))
    return Prediction(statement, rule, f"{sum(judged)} of {len(judged)} methods; nf4: {_extremes(rows)}", verdict)


def _nf4_is_nearest(run: Run, method: str) -> bool | None:
    def distances(families: tuple[str, ...]) -> list[float]:
        rows = select(_cells(run, "gain", "bf16", families), method=method)
        return [abs(row.value - 1) for row in rows if row.value is not None]

    nf4, coarse = distances(("nf4",)), distances(("int4", "fp4"))
    return max(nf4) < min(coarse) if nf4 and coarse else None


def _untested(statement: str, rule: str) -> Prediction:
    return Prediction(statement, rule, NOT_TESTED, OPEN, tested=False)


def _extremes(rows: list[Row]) -> str:
    low = min(rows, key=lambda row: row.value or 0.0)
    high = max(rows, key=lambda row: row.value or 0.0)
    name = "ρ(M1)" if low.metric == "rho_M1" else low.metric
    ends = dict.fromkeys(f"{estimate(row)} ({row.method}, {row.format})" for row in (low, high))
    return f"{name} " + " to ".join(ends)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

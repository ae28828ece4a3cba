"""The answer of an audit, as terminal and page give it first: does it survive, in which format, and what now?

In goes the object of `audit.json`; out come the rows that both print. What has no value is "–" or says why, never 0 or nan.

    found = answer(result)
    found.rows[0].word, found.next_steps[0]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from unforgotten.audit.deployed.told import deployed_label, deployed_word
from unforgotten.audit.findings.functional import functional_of
from unforgotten.audit.findings.ran import ran_sentences
from unforgotten.audit.findings.sentences import STDERRS, Finding
from unforgotten.audit.outputs.merged import top_reasons
from unforgotten.audit.outputs.result import AuditResult
from unforgotten.audit.outputs.result_rows import FormatRow, audited_formats
from unforgotten.audit.verdict.gate import RETAIN_LOST, format_word
from unforgotten.audit.verdict.legs import DEPLOYED, BehaviourLeg, OutputLeg, RecoveryRow, deciding_of, retained_of
from unforgotten.audit.verdict.power import power_sentence
from unforgotten.audit.verdict.rule import DECIDES_OUTPUT, Word, decide, unmeasured_of

Tone = Literal["good", "bad", "open"]
OUTPUT_SHOWN = ("accuracy", "probability")
TONES: Mapping[str, Tone] = {
    "survives": "good",
    "passes": "good",
    "undone": "bad",
    "swallowed": "bad",
    "partly swallowed": "bad",
    "no update": "bad",
}
NO_VALUE = "–"


class Trail(NamedTuple):
    """One metric on target, unlearned and quantized unlearned model, as text."""

    metric: str
    target: str
    unlearned: str
    quantized: str

    def __str__(self) -> str:
        """Return the three with arrows."""
        return f"{self.target} → {self.unlearned} → {self.quantized}"


class FormatAnswer(NamedTuple):
    """One format: its word and what stands behind it, as text."""

    format: str
    word: str
    tone: Tone
    gain: str
    functional: str
    trails: list[Trail]
    recovered: str


class Answer(NamedTuple):
    """What terminal and page print first.

    Attributes:
        overall: word of the verdict.
        tone: tone of that word; never "good" for a broken model.
        legs: name and word of each leg.
        metrics: names of the metrics in the trails; none where no model was measured.
        functional: whether the functional gain was measured.
        rows: one a format.
        models: sentence on the models themselves, M4, M3 and AUC; empty without a benchmark.
        reasons: at most five reasons.
        items: sentence on the items behind the verdict; empty where nothing was measured, or a next step says it.
        next_steps: what would decide it, or what to do.
        notes: what a reader must know of how it was measured.
    """

    overall: str
    tone: Tone
    legs: list[tuple[str, str]]
    metrics: tuple[str, ...]
    functional: bool
    rows: list[FormatAnswer]
    models: str
    items: str
    reasons: list[str]
    next_steps: list[str]
    notes: list[str]


def answer(result: AuditResult) -> Answer:
    """Return the answer of an audit."""
    broken = is_broken(result)
    verdict = result["verdict"]
    rows = [row for row in result["formats"] if row["grid"] == "adaptive"]
    steps, items = list(_next_steps(result)), power_sentence(result["power"]) or ""
    return Answer(
        overall=verdict["overall"],
        tone=_tone(verdict["overall"], broken),
        legs=[(leg, str(word) if word else "not measured") for leg, word in verdict["legs"].items()],
        metrics=_shown(result),
        functional=functional_of(result["output"], result["behaviour"]) is not None,
        rows=[*(_format_answer(result, row, broken) for row in rows), *_deployed_answer(result)],
        models=_models(result),
        items="" if any(items in step for step in steps) else items,
        reasons=top_reasons(result),
        next_steps=steps,
        notes=_notes(result),
    )


def is_broken(result: AuditResult) -> bool:
    """Tell whether a model lost what it should keep."""
    return any(row["id"] == RETAIN_LOST for row in result["findings"])


def _tone(word: str, broken: bool) -> Tone:
    return "bad" if broken else TONES.get(word, "open")


def _shown(result: AuditResult) -> tuple[str, ...]:
    if result["behaviour"] is not None:
        return (*deciding_of(result["behaviour"]), *retained_of(result["behaviour"]))
    return OUTPUT_SHOWN if result["output"] is not None else ()


def _format_answer(result: AuditResult, row: FormatRow, broken: bool) -> FormatAnswer:
    name = row["format"]
    word = _word(result, row)
    return FormatAnswer(
        format=name,
        word=word,
        tone=_tone(word, broken),
        gain=gain_text(row["gain"], row["gain_stderr"]),
        functional=_functional(result, name),
        trails=[_trail(result, name, metric) for metric in _shown(result)],
        recovered=_recovered(result, name),
    )


def _deployed_answer(result: AuditResult) -> Iterator[FormatAnswer]:
    """Yield the row of the pair as it was really quantized, if it was given; with models where its runtime was measured."""
    deployed = result["deployed"]
    if deployed is not None:
        word, ran = _deployed_word(result), _ran_itself(result)
        empty = [Trail(metric, NO_VALUE, NO_VALUE, NO_VALUE) for metric in _shown(result)]
        tone = _tone(word, is_broken(result))
        yield FormatAnswer(
            deployed_label(deployed),
            word,
            tone,
            gain_text(deployed["gain"], deployed["gain_stderr"]),
            NO_VALUE,
            [_trail(result, DEPLOYED, metric) for metric in _shown(result)] if ran else empty,
            _recovered(result, DEPLOYED) if ran else NO_VALUE,
        )


def _ran_itself(result: AuditResult) -> bool:
    """Tell whether the quantized models were measured as their own library runs them."""
    return any(_only(leg, DEPLOYED) is not None for leg in (result["output"], result["behaviour"]))


def _deployed_word(result: AuditResult) -> str:
    """Return the word of the deployed pair: of what its models did where they ran, else of its weights."""
    deployed, overall = result["deployed"], result["verdict"]["overall"]
    weights = None if deployed is None else deployed_word(deployed)
    return word_of(DEPLOYED, weights, result["output"], result["behaviour"], overall=overall) or ""


def gain_text(gain: float | None, stderr: float | None) -> str:
    """Return a gain with its margin as text, or a dash where there is none."""
    if gain is None:
        return NO_VALUE
    return f"{gain:.2f} ± {STDERRS * stderr:.2f}" if stderr else f"{gain:.2f}"


def _functional(result: AuditResult, name: str) -> str:
    """Return the functional gain of a format with what chance moves it by, or a dash where there is none."""
    leg = functional_of(result["output"], result["behaviour"])
    row = None if leg is None else next((one for one in leg["formats"] if one["format"] == name), None)
    if row is None or row["functional_gain"] is None:
        return NO_VALUE
    return f"{row['functional_gain']:.2f} ± {row['sham_shift'] or 0:.2f}"


def _word(result: AuditResult, row: FormatRow) -> str:
    legs = result["output"], result["behaviour"]
    return word_of(row["format"], format_word(row), *legs, overall=result["verdict"]["overall"]) or "codes only"


def word_of(
    name: str, weights: Finding | None, output: OutputLeg | None, behaviour: BehaviourLeg | None, *, overall: Word
) -> str | None:
    """Return the word of one format: the verdict of what was measured in it, else that of its weights, if they have one.

    The verdict corrects for the number of formats: where it is not "undone", no format alone is.
    """
    legs = [_only(leg, name) for leg in (output, behaviour)]
    if not any(legs):
        return weights
    word = decide(weights or "unclear", *legs)["overall"]
    return "undecided" if word == "undone" != overall else word


def _only(leg: Any, name: str) -> Any:
    """Return a leg with one of its formats, or None where it did not measure that one."""
    if leg is None:
        return None
    found = [f for f in leg["formats"] if f["format"] == name]
    if not found:
        return None
    return {**leg, "formats": found, **({"leaks": []} if "leaks" in leg else {})}


def _recoveries(result: AuditResult, name: str) -> list[RecoveryRow]:
    legs: Sequence[Any] = (result["behaviour"], result["output"])
    leg = next((one for one in legs if one is not None), None)
    return [] if leg is None else [r for f in leg["formats"] if f["format"] == name for r in f["recoveries"]]


def _trail(result: AuditResult, name: str, metric: str) -> Trail:
    for row in _recoveries(result, name):
        if row["metric"] == metric:
            return Trail(metric, *(text_of(row[key]) for key in ("target", "unlearned", "quantized_unlearned")))
    leg = result["behaviour"]
    if leg is None:
        return Trail(metric, NO_VALUE, NO_VALUE, NO_VALUE)
    quantized = next((f["metrics"].get("Q(unlearned)", {}) for f in leg["formats"] if f["format"] == name), {})
    sides = (leg["metrics"].get("target", {}), leg["metrics"].get("unlearned", {}), quantized)
    return Trail(metric, *(text_of(_value(side, metric)) for side in sides))


def _value(means: Mapping[str, Any], metric: str) -> float | None:
    """Return the mean of a metric; None where it has none, or one that is not finite."""
    value = means.get(metric, {}).get("value")
    return value if value is not None and math.isfinite(value) else None


def text_of(x: float | None) -> str:
    """Return a number of about two digits as text, or a dash where there is none."""
    if x is None or not math.isfinite(x):
        return NO_VALUE
    return f"{x:.0f}" if abs(x) >= 9.95 else f"{x:.2g}"


def _recovered(result: AuditResult, name: str) -> str:
    """Return the largest recovered share of a metric that decides, with its interval."""
    deciding = (*deciding_of(result["behaviour"]), *DECIDES_OUTPUT)
    asked = [r for r in _recoveries(result, name) if r["metric"] in deciding]
    known = [row for row in asked if row["rho"] is not None]
    if not known:
        return NO_VALUE
    return recovered_text(max(known, key=lambda row: row["rho"] or 0.0))


def recovered_text(row: RecoveryRow) -> str:
    """Return a recovered share with its interval, or a dash where it is undefined."""
    if row["rho"] is None:
        return NO_VALUE
    low, high = row["low"], row["high"]
    ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{100 * row['rho']:.0f} %{ends}"


def _models(result: AuditResult) -> str:
    leg = result["behaviour"]
    if leg is None:
        return ""
    target, unlearned = (leg["metrics"].get(name, {}) for name in ("target", "unlearned"))
    pairs = [*((name, name) for name in retained_of(leg)), ("retain_loss", "retain loss"), ("auc", "AUC")]
    parts = [
        f"{label} {text_of(_value(target, name))} → {text_of(_value(unlearned, name))}"
        for name, label in pairs
        if _value(target, name) is not None or _value(unlearned, name) is not None
    ]
    return f"Target → unlearned: {', '.join([*parts, _privacy(leg['metrics'])])}."


def _privacy(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return M3 of the unlearned model, or why it has none and what stands in its place."""
    retrained, unlearned = metrics.get("retrained"), metrics.get("unlearned", {})
    leak = _value(unlearned, "M3")
    if leak is not None:
        return f"M3 {leak:.0f} %"
    if retrained is None:
        return "M3 not measured (it needs --retrained)"
    own, base = _value(unlearned, "auc"), _value(retrained, "auc")
    if own is None or base is None:
        return "M3 undefined"
    return f"M3 undefined (AUC of the retrained model is {base:.2f}), AUC differs from it by {own - base:+.2f}"


def _next_steps(result: AuditResult) -> Iterator[str]:
    overall = result["verdict"]["overall"]
    if is_broken(result):
        yield "Unlearn again, more gently: a model that lost what it should keep is no release, in any format."
    elif result["compared"] == "codes":
        yield "To decide: audit the two checkpoints from before they were quantized; codes tell no gain."
    elif result["output"] is None and result["behaviour"] is None:
        yield (
            "To decide: --texts FILE measures how likely the forget texts are again, --benchmark DIR what the quantized "
            "models answer (M1-M4)."
        )
    elif overall == "undecided":
        yield _undecided_step(result)
    else:
        yield _release_step(result)


def _undecided_step(result: AuditResult) -> str:
    """Return which formats would have to be measured, or how many items would decide."""
    leg = result["behaviour"]
    missing = [] if leg is None else unmeasured_of(leg, audited_formats(result["formats"]))
    if missing:
        names = ", ".join(missing)
        return f"To decide: judge it in {names} too, by these names, or name in --formats only what was judged."
    sentence = power_sentence(result["power"])
    add = "" if result["behaviour"] is not None else ", or --benchmark DIR"
    return f"To decide: more items{add}: {sentence}" if sentence else f"To decide: more items{add}."


def _release_step(result: AuditResult) -> str:
    words = [(row["format"], _word(result, row)) for row in result["formats"] if row["grid"] == "adaptive"]
    if result["deployed"] is not None and _ran_itself(result):
        words.append((deployed_label(result["deployed"]), _deployed_word(result)))
    words += _elsewhere(result)
    names = {word: [name for name, said in words if said == word] for word in ("survives", "undone")}
    if result["verdict"]["overall"] == "survives":
        return f"What now: it may be released in {', '.join(names['survives'])}; other formats were not measured."
    hold = f"; of those measured it survives in {', '.join(names['survives'])}" if names["survives"] else ""
    return f"What now: do not release it in {', '.join(names['undone']) or 'these formats'}{hold}."


def _elsewhere(result: AuditResult) -> Iterator[tuple[str, str]]:
    """Yield the word of each format that models were measured in and the weights were not."""
    legs = result["output"], result["behaviour"]
    found = dict.fromkeys(one["format"] for leg in legs if leg is not None for one in leg["formats"])
    for name in found:
        if name != DEPLOYED and name not in audited_formats(result["formats"]):
            yield name, word_of(name, None, *legs, overall=result["verdict"]["overall"]) or ""


def _notes(result: AuditResult) -> list[str]:
    """Return the notes on files and on measurements: conventions that were chosen, and what was cut or left out."""
    files = [*(result["deployed"]["notes"] if result["deployed"] is not None else ()), *result["notes"]]
    legs = [note for leg in (result["output"], result["behaviour"]) if leg is not None for note in leg["notes"]]
    return [*files, *ran_sentences(result["output"], result["behaviour"]), *legs]

"""The behaviour leg of an audit: M1-M4 of target, unlearned model and both quantized, on a benchmark.

In go the directories of both models, the formats and a benchmark in MUSE's layout; out comes the leg as `audit.json` holds
it, on which the verdict is built first of all:

    leg = behaviour_leg(target, unlearned, ["int4-g64"], Path("benchmark"))
    leg["formats"][0]["recoveries"][0]["rho"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unforgotten.audit.progress.stages import Begin, Step, counted, ignore
from unforgotten.audit.verdict.asked import items_sha256
from unforgotten.audit.verdict.evidence import leak
from unforgotten.audit.verdict.legs import DEPLOYED, BehaviourFormat, BehaviourLeg, Effects, Leak, Mean, Ran
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.dtypes import dtype_named
from unforgotten.experiments.legs.functional import functional_leg
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair, read_state
from unforgotten.experiments.legs.ran import ran_of
from unforgotten.experiments.legs.real_runtime import Sources, load_real, ran_real
from unforgotten.experiments.metrics.effects import effects, hybrid_states, recovery
from unforgotten.experiments.metrics.items import as_mean
from unforgotten.experiments.metrics.meter import Measured, Meter
from unforgotten.experiments.models.generation import overruled
from unforgotten.experiments.models.kept import Kept
from unforgotten.experiments.models.memory import Copies, check_memory
from unforgotten.experiments.models.saved import generation_settings
from unforgotten.experiments.quantizers.quantizer import State

COPIES = Copies(models=1, parts=0.6)
"""What is in memory at most: the model that is run, and the largest tensor a few times."""
RECOVERED = ("M1", "M2", "forget_loss")
DECOMPOSED = ("M1", "M2", "M4", "forget_loss", "retain_loss")
LEAKED = ("M1", "M2")
NO_RETRAINED = (
    "M3 is left out: it compares with a model that never saw the forget texts, and none was given; auc stands alone."
)


def behaviour_leg(
    target: Path,
    unlearned: Path,
    formats: Sequence[str],
    benchmark: Path,
    *,
    retrained: Path | None = None,
    items: int | None = None,
    decompose: bool = True,
    step: Step = ignore,
    unfinished: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    real: Sources | None = None,
) -> BehaviourLeg:
    """Measure M1-M4 of both models in every format, T14, T16, and the union leak over formats.

    Args:
        target: directory of the model before unlearning.
        unlearned: directory of the model after unlearning.
        formats: names of formats, at least one.
        benchmark: directory, see `read_benchmark`.
        retrained: directory of the model that never saw the forget texts, for M3.
        items: how many items of each part of the benchmark are measured at most; None for all.
        decompose: switch for measuring the two mixed models of T14 too, which doubles the time.
        step: callback that is told which model comes next.
        unfinished: directory that keeps what each model answered, from which a leg that was cut off goes on.
        device: device that models run on, as `--device` names it.
        dtype: dtype that they run in, as `--dtype` names it.
        real: directories of the quantized target and unlearned model that their own library runs too; None for none.

    Raises:
        ValueError: the input breaks a rule; one line.
    """
    kind = dtype_named(dtype, (target, unlearned, *([] if retrained is None else [retrained])))
    if device == "cpu":
        check_memory(target, COPIES, str(kind).removeprefix("torch."))
    pair = open_model_pair(target, unlearned, device, kind)
    pair.shell.check(formats)
    bench = read_benchmark(benchmark, pair.shell.tokenizer, pair.shell.context, items)
    kept = None if unfinished is None else Kept(unfinished)
    meter = Meter(pair.shell, bench.probes, bench.settings, kept=kept)
    trained = None
    begin = counted(step, (retrained is not None) + 2 * (1 + len(formats) + (real is not None)) + 1)
    if retrained is not None:
        begin("retrained")
        state = read_state(retrained, pair.shell.model)
        meter = meter.against(state)
        trained = meter.measure(state)
    folders = {"target": target, "unlearned": unlearned} | ({} if retrained is None else {"retrained": retrained})
    begin("target")
    base = {"none": meter.measure(pair.target)}
    for name in formats:
        begin(f"Q(target) {name}")
        base[name] = meter.measure(pair.shell.quantized(pair.target, name))
    deployed = None if real is None else _deployed(meter, pair, real, begin)
    return measure_unlearned(
        meter,
        pair,
        base,
        formats,
        benchmark=str(benchmark),
        notes=[*bench.notes, *_generation_notes(folders)],
        trained=trained,
        decompose=decompose,
        gradient=True,
        begin=begin,
        deployed=deployed,
    )


class Deployed(NamedTuple):
    """The quantized models, measured as their library runs them, and how that was."""

    target: Measured
    unlearned: Measured
    ran: Ran


def _deployed(meter: Meter, pair: Pair, real: Sources, begin: Begin) -> Deployed:
    """Measure both one after the other, so that one of them is in memory."""

    def measured(name: str, source: str) -> tuple[Measured, Ran]:
        begin(f"Q({name}) {DEPLOYED}")
        model = load_real(source, pair.shell.model)
        return meter.measure_model(model), ran_real(model, source)

    target, _ = measured("target", real[0])
    return Deployed(target, *measured("unlearned", real[1]))


def measure_unlearned(
    meter: Meter,
    pair: Pair,
    base: Mapping[str, Measured],
    formats: Sequence[str],
    *,
    benchmark: str,
    notes: Sequence[str] = (),
    begin: Begin = lambda name: None,
    trained: Measured | None = None,
    decompose: bool = True,
    gradient: bool = False,
    deployed: Deployed | None = None,
) -> BehaviourLeg:
    """Return the leg, given the target's measurements: `base` by format, "none" for the target itself."""
    begin("unlearned")
    after: dict[str, Measured] = {"none": meter.measure(pair.unlearned)}
    found: dict[str, list[Effects]] = {}
    for name in formats:
        begin(f"Q(unlearned) {name}")
        state = pair.shell.quantized(pair.unlearned, name)
        after[name] = meter.measure(state)
        if decompose:
            found[name] = _decompose(meter, pair, name, state, _four(base, after, name))
    if deployed is not None:
        base, after[DEPLOYED] = {**base, DEPLOYED: deployed.target}, deployed.unlearned
    begin("functional gain")
    functional = functional_leg(pair, formats, meter.probes.passages) if gradient else None
    ran = ran_of(pair, formats)
    begin("")
    told = [*notes, *_privacy_notes(meter, trained)]
    leg = leg_of(base, after, benchmark=benchmark, effects_by_format=found, notes=told)
    leg["ran"] = ran
    leg["items_sha256"] = items_sha256(meter.probes.asked)
    if deployed is not None:
        leg["formats"][-1]["ran"] = deployed.ran
    if functional is not None:
        leg["functional"] = functional
    if trained is not None:
        leg["metrics"]["retrained"] = means(trained)
    return leg


def _generation_notes(folders: Mapping[str, Path]) -> list[str]:
    """Return a note on each model whose own generation settings would have changed its answers."""
    own = {name: overruled(generation_settings(folder)) for name, folder in folders.items()}
    return [
        f"The {name} model has generation settings of its own that are not used, for M1, M2 and M4 are greedy: "
        f"{', '.join(f'{key}={value!r}' for key, value in settings.items())}."
        for name, settings in own.items()
        if settings
    ]


def _privacy_notes(meter: Meter, trained: Measured | None) -> list[str]:
    if meter.retrained_scores is None:
        return [NO_RETRAINED]
    if trained is None or np.isfinite(trained["M3"].value):
        return []
    auc = trained["auc"].value
    return [
        f"M3 is undefined: it is a percentage of the retrained model's auc, {auc:.3f}. See auc_gap, the difference."
    ]


def leg_of(
    base: Mapping[str, Measured],
    after: Mapping[str, Measured],
    *,
    benchmark: str,
    effects_by_format: Mapping[str, list[Effects]] | None = None,
    notes: Sequence[str] = (),
) -> BehaviourLeg:
    """Build the behaviour leg from measurements of both models by format, "none" for the model itself."""
    formats = [name for name in after if name != "none"]
    rows = []
    for name in formats:
        models = _four(base, after, name)
        items = items_of(models)
        rows.append(
            BehaviourFormat(
                format=name,
                metrics={key: means(models[key]) for key in ("Q(target)", "Q(unlearned)")},
                recoveries=[recovery(metric, items) for metric in RECOVERED],
                effects=(effects_by_format or {}).get(name, []),
            )
        )
    return BehaviourLeg(
        benchmark=benchmark,
        metrics={"target": means(base["none"]), "unlearned": means(after["none"])},
        formats=rows,
        leaks=leaks(base["none"], after["none"], {name: after[name] for name in formats}),
        notes=list(notes),
    )


def _four(base: Mapping[str, Measured], after: Mapping[str, Measured], name: str) -> dict[str, Measured]:
    return {"target": base["none"], "unlearned": after["none"], "Q(target)": base[name], "Q(unlearned)": after[name]}


def _decompose(
    meter: Meter, pair: Pair, format_name: str, q_unlearned: State, models: Mapping[str, Measured]
) -> list[Effects]:
    q_target = pair.shell.quantized(pair.target, format_name)
    mixed = hybrid_states(pair.shell.touched(format_name), pair.target, pair.unlearned, q_target, q_unlearned)
    items = items_of({**models, **{name: meter.measure(state, DECOMPOSED) for name, state in mixed.items()}})
    return [effects(metric, items).as_row(metric) for metric in DECOMPOSED]


def items_of(models: Mapping[str, Measured]) -> dict[str, dict[str, list[float]]]:
    """Return the per-item values of each metric, by model and metric."""
    return {name: {metric: list(m.items or ()) for metric, m in measured.items()} for name, measured in models.items()}


def leaks(before: Measured, after: Measured, quantized: Mapping[str, Measured]) -> list[Leak]:
    """Return the union leak over formats of each metric from which unlearning took something."""
    found = (
        leak(
            metric,
            np.asarray(before[metric].items),
            np.asarray(after[metric].items),
            {name: np.asarray(measured[metric].items) for name, measured in quantized.items()},
        )
        for metric in LEAKED
    )
    return [row for row in found if row is not None]


def means(measured: Measured) -> dict[str, Mean]:
    """Return values with their standard errors, as in the rows of a run; a metric without a value is left out."""
    return {name: as_mean(m) for name, m in measured.items() if np.isfinite(m.value)}

"""Audits of pairs whose truth is certain by construction, all three legs, from checkpoints on disk.

They are the set "constructed" of the study `audit-truth`, whose readings of the runs' models are made here, too.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from unforgotten.audit.run import audit_pair
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.behaviour import measure_unlearned
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.legs.output import encode_texts, measure_output
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.studies.pairs.audit_truth_models import Constructed, constructed, read_run
from unforgotten.records.depths import kept_depths, state_name

ARM = ("NPO", "fp32")
TRUTHS = {"clamped": ("undone", 1.0), "on grid": ("survives", 0.0)}
TEXTS = "corpus/privleak/forget.json"
DIGITS = 7  # of what is kept of a reading


def constructed_rows(run: Path) -> Iterator[dict[str, Any]]:
    """Yield one row a constructed pair of a run, in each of its formats; none of a run without ARM."""
    config = json.loads((run / "config.json").read_text())
    if ARM not in _arms(config):
        return
    pair = open_model_pair(run / "models/target", run / f"models/{_states(run, config, (ARM,))[0]}")
    benchmark = read_benchmark(run / "corpus", pair.shell.tokenizer, pair.shell.context)
    meter = Meter(pair.shell, benchmark.probes, benchmark.settings, known={})
    for format_name in config["formats"]:
        for made in constructed(pair, format_name):
            yield {"set": "constructed", "run": run.name, **_audit(meter, pair, made, run, benchmark.notes)}


def _arms(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    chosen = config.get("only_methods") or list(config["unlearning"]["methods"])
    return [(method, storage) for method in chosen for storage in config["storages"]]


def _states(run: Path, config: Mapping[str, Any], arms: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names of what the arms of a run left, those of each depth that was kept."""
    depths = kept_depths(config["unlearning"])
    names = [state_name(method, storage, depth) for method, storage in arms for depth in depths]
    return [name for name in names if len(depths) == 1 or (run / "models" / name).is_dir()]


def _audit(meter: Meter, pair: Pair, made: Constructed, run: Path, notes: Sequence[str]) -> dict[str, Any]:
    own = dataclasses.replace(pair, target=made.target, unlearned=made.unlearned)
    formats = [made.format]
    texts, cut = encode_texts(read_texts(run / TEXTS), own, TEXTS)
    base = {"none": meter.measure(own.target)}
    base[made.format] = meter.measure(own.shell.quantized(own.target, made.format))
    with tempfile.TemporaryDirectory() as scratch:
        folders = [
            _saved(Path(scratch) / name, state, run)
            for name, state in (("target", own.target), ("unlearned", own.unlearned))
        ]
        result = audit_pair(
            folders[0],
            folders[1],
            formats,
            output=lambda: measure_output(own, formats, texts, name=TEXTS, cut=cut),
            behaviour=lambda: measure_unlearned(
                meter, own, base, formats, benchmark="corpus", notes=notes, decompose=False
            ),
        )
    word, rho = TRUTHS[made.kind]
    verdict = result["verdict"]
    return {
        "method": made.kind,
        "storage": "fp32",
        "format": made.format,
        "looked_at": False,
        "truth": word,
        "clear": True,
        "rho": rho,
        "interval": [rho, rho],
        "where": f"every metric in {made.format}",
        "verdict": verdict["overall"],
        "legs": verdict["legs"],
    }


def _saved(folder: Path, state: State, run: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run / "models/target" / name, folder / name)
    tied = {k: v.clone() for k, v in state.items() if k != "lm_head.weight"}
    save_file(tied, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def readings(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the items that `audit_truth` reads, of every model of a run in every format."""
    config = json.loads((run / "config.json").read_text())
    for model, format_name, items in read_run(run, _states(run, config, _arms(config)), config["formats"]):
        kept = {m: [float(f"{x:.{DIGITS}g}") for x in values] for m, values in items.items()}
        yield {"run": run.name, "model": model, "format": format_name, "items": kept}

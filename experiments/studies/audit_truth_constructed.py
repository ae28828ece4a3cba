"""Audits of pairs whose truth is certain by construction, all three legs, from checkpoints on disk.

`python -m unforgotten.experiments.studies.audit_truth_constructed FOLDER RUN…` appends rows of the set "constructed" to
FOLDER/rows.jsonl, and what `audit_truth_models` reads of the runs' models to FOLDER/readings.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unforgotten.audit.run import audit_pair
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.behaviour import Meter, measure_unlearned
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.loaded_pair import open_model_pair
from unforgotten.experiments.legs.output import encode_texts, measure_output
from unforgotten.experiments.quantizers.registry import State
from unforgotten.experiments.studies.audit_truth_models import Constructed, constructed, read_run
from unforgotten.records.files import write_text

ARM = "unlearned-NPO-fp32"
TRUTHS = {"clamped": ("undone", 1.0), "on grid": ("survives", 0.0)}
TEXTS = "corpus/privleak/forget.json"
DIGITS = 7  # of what is kept of a reading


def constructed_rows(run: Path) -> Iterator[dict[str, Any]]:
    """One row a constructed pair of a run, in each of its formats."""
    config = json.loads((run / "config.json").read_text())
    pair = open_model_pair(run / "models/target", run / f"models/{ARM}")
    benchmark = read_benchmark(run / "corpus", pair.tokenizer, pair.context)
    meter = Meter(pair, benchmark, known={})
    for format_name in config["formats"]:
        for made in constructed(pair, format_name):
            yield {"set": "constructed", "run": run.name, **_audit(meter, made, run)}


def _audit(meter: Meter, made: Constructed, run: Path) -> dict[str, Any]:
    own = dataclasses.replace(meter.pair, target=made.target, unlearned=made.unlearned)
    meter = dataclasses.replace(meter, pair=own)
    formats = [made.format]
    texts, cut = encode_texts(read_texts(run / TEXTS), own, TEXTS)
    base = {"none": meter.measure(own.target)}
    base[made.format] = meter.measure(own.quantized(own.target, made.format))
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
            behaviour=lambda: measure_unlearned(meter, base, formats, benchmark="corpus", decompose=False),
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
    chosen = config.get("only_methods") or list(config["unlearning"]["methods"])
    arms = [(method, storage) for method in chosen for storage in config["storages"]]
    for model, format_name, items in read_run(run, arms, config["formats"]):
        kept = {m: [float(f"{x:.{DIGITS}g}") for x in values] for m, values in items.items()}
        yield {"run": run.name, "model": model, "format": format_name, "items": kept}


def main(folder: Path, runs: Sequence[Path]) -> None:
    """Measure, and append to both files."""
    torch.set_num_threads(1)
    for run in runs:
        for name, rows in (("rows", constructed_rows(run)), ("readings", readings(run))):
            path = folder / f"{name}.jsonl"
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            write_text(path, before + "".join(json.dumps(row) + "\n" for row in rows))
        print(f"measured: {run}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])

"""What other people's quantizers leave of updates, from the files they write, beside our own format of the same name.

The models of runs are quantized by each tool, on the run's own retain text where it calibrates, and the pair of files goes
through the audit as `--deployed` does. `unequal` counts weights that the audit decodes to other values than the tool does.

    unforgotten study deployed-files --set runs=[runs/demo] --out runs/deployed-files
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import Field

from unforgotten.audit import audit_pair
from unforgotten.audit.deployed.gguf_names import gguf_places
from unforgotten.audit.deployed.orders import TURNED
from unforgotten.audit.deployed.stored import Artefact, open_deployed
from unforgotten.audit.progress.stages import Progress
from unforgotten.audit.sources.gguf import GgufCheckpoint
from unforgotten.audit.sources.open import open_source
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.saved import load_model, load_notes, load_tokenizer
from unforgotten.experiments.models.shell import linear_names
from unforgotten.experiments.run import revision
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.experiments.studies.tool_files import TOOLS, Values, check_tools
from unforgotten.records.files import write_json_lines

DOCUMENTS = 16
"""Texts that a tool calibrates on."""


class RunsAndTools(Section):
    """Folders of runs, with their models, and names of tools."""

    runs: tuple[Path, ...] = Field(min_length=1)
    tools: tuple[str, ...] = Field(min_length=1)


def rows_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each unlearned model of a run, by one tool.

    Args:
        folder: folder of the run.
        name: name of the tool.
    """
    config = RunConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    models, tool = folder / "models", TOOLS[name]
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    documents = make_probes(corpus, load_tokenizer(models / "target"), config).retain[:DOCUMENTS]
    names = linear_names(load_model(models / "target"))
    with TemporaryDirectory() as place:
        before = _written(name, models / "target", Path(place) / "target", documents)
        for path in sorted(models.glob("unlearned-*")):
            after = _written(name, path, Path(place) / path.name, documents)
            pair = models / "target", path
            found = audit_pair(*pair, [tool.ours], deployed=(str(before), str(after)))
            deployed = found["deployed"]
            assert deployed is not None, "two quantized models were given"
            (own,) = (row for row in found["formats"] if row["grid"] == "adaptive")
            opened = open_deployed((before, after), (open_source(pair[0]), open_source(pair[1])), names)
            _, method, storage = path.name.split("-", 2)
            yield {
                "run": folder.name,
                "method": method,
                "storage": storage,
                "seed": config.seed,
                "steps": load_notes(path)["steps"],
                "tool": tool.requirement,
                "written_by": name,
                "unequal": sum(
                    unequal(one, tool.decode(file), tool.dtype)
                    for one, file in zip(opened, (before, after), strict=True)
                ),
                "weights": deployed["weights"],
                "gain": deployed["gain"],
                "cosine": deployed["cosine"],
                "base_shift": deployed["base_shift"],
                "types": deployed["types"],
                "notes": deployed["notes"],
                "ours": tool.ours,
                "ours_gain": own["gain"],
                "ours_cosine": own["cosine"],
                "revision": revision(),
            }


def _written(name: str, model: Path, path: Path, documents: Documents) -> Path:
    path = path.with_suffix(".gguf") if name == "llama-cpp" else path
    TOOLS[name].write(model, path, documents)
    return path


def unequal(opened: Artefact, theirs: Values, dtype: str) -> int:
    """Count the weights that the audit and the tool decode to different values."""
    checkpoint, places = opened.checkpoint, {name: name for name in opened.stored}
    if isinstance(checkpoint, GgufCheckpoint):
        found = gguf_places(list(opened.stored), checkpoint.tensors, checkpoint.architecture)
        places = {name: place.name for name, place in found.items()}
    count = 0
    for name, stored in opened.stored.items():
        other = theirs[places[name]]
        ours = stored.values().T if set(stored.orders) == {TURNED} else stored.values()
        count += int(np.count_nonzero(ours.astype(dtype) != other))
    return count


def _measure(settings: RunsAndTools, folder: Path, progress: Progress) -> None:
    check_tools(settings.tools)
    rows: list[dict[str, Any]] = []
    for run in settings.runs:
        for name in settings.tools:
            with progress.stage(f"{name} {run.name}"):
                rows += rows_of(run, name)
                write_json_lines(folder / "rows.jsonl", rows)


STUDY = Study(RunsAndTools, lambda settings: len(settings.runs) * len(settings.tools), _measure)

"""Evaluate and decompose one unlearned model of a folder of models; print its float32 bytes and the growth of the peak."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments import run
from unforgotten.experiments.arms.arm import arms
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.saved import load_tokenizer
from unforgotten.records.store import RowStore

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def kib(name: str) -> int:
    """Return a line of the status of this process."""
    found = re.search(rf"^{name}:\s+(\d+)", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def evaluated(folder: Path, overrides: list[str]) -> int:
    """Measure all models of a folder as a run does; return the number of weights of one."""
    config = load_config(str(Path(__file__).parents[2] / "micro.yaml"), overrides=overrides)
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    tokenizer = load_tokenizer(folder / "models/target")
    probes = make_probes(corpus, tokenizer, config)
    store = RowStore(folder, {"seed": 0, "config": "", "revision": "", "device": "cpu"})
    bench = run._bench(config, corpus, probes, tokenizer, folder / "models", store)
    assert bench.states.streamed
    bench = run._evaluate_trained(config, bench, SILENT)
    for arm in arms(config):
        run._evaluate_states(config, bench, arm, folder, SILENT)
    return sum(p.numel() for p in bench.states.model.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    small, large, *overrides = sys.argv[1:]
    evaluated(Path(small), overrides)  # loads and compiles what any evaluation needs
    CLEAR.write_text("5")  # the peak begins anew
    before = kib("VmRSS")
    weights = evaluated(Path(large), overrides)
    print(4 * weights, 1024 * (kib("VmHWM") - before))

"""Gen, Tru and Fac: general ability, truthfulness and factuality, by the tasks of lm-evaluation-harness (extra `harness`).

Gen is accuracy on MMLU (Hendrycks et al. 2021), Tru the probability of true answers in TruthfulQA, MC2 (Lin et al. 2022), Fac
exact match on TriviaQA (Joshi et al. 2017), each 0 to 100, as arXiv 2410.16454 reports them beside M1-M4. Its code asks 171, 50
and 100 items of RWKU in prompts of its own, so numbers compare with those of the harness and not with the paper's.

The harness fetches each task's data when it is loaded. `evaluation.harness.path` is a directory of task files whose names come
before the harness's own, for data that lies on disk; `evaluation.harness.limit` is how many items of each task are asked.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unforgotten.experiments.metrics.metric import Metric
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes
    from unforgotten.records.store import Measurement

FEWSHOT_SEED = 1234
"""The harness's own, from which its examples are drawn; set again for each model, so that all are asked the same."""


class HarnessTask(NamedTuple):
    """A task or group of the harness, and what of its samples is the metric."""

    task: str
    value: str
    meaning: str


TASKS = {
    "Gen": HarnessTask("mmlu", "acc", "accuracy on MMLU"),
    "Tru": HarnessTask("truthfulqa_mc2", "acc", "probability of the true answers of TruthfulQA, MC2"),
    "Fac": HarnessTask("triviaqa", "exact_match", "exact match on TriviaQA"),
}


def _check(name: str, settings: Measuring) -> None:
    """Refuse a run whose tasks cannot be asked, before anything is trained."""
    _loaded(TASKS[name].task, settings.evaluation.harness.path)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the harness's log and its bars from the terminal, which has one display of progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@cache
def _loaded(task: str, path: Path | None) -> Any:
    """Return a task as the harness loads it, with its data."""
    need("unforgotten[harness]", "lm_eval")
    with _quietly():
        library, errors = import_module("lm_eval.tasks"), import_module("datasets.exceptions")
        try:
            found = library.TaskManager(include_path=path).load([task])
        except (OSError, ValueError, KeyError, RuntimeError, errors.DatasetsError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            rule = f"the harness must be able to load task {task} and its data"
            raise ValueError(f"evaluation.metrics: {rule}, got {said}") from None
    for one in found["tasks"].values():
        if one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
    return found


def _measure(name: str, model: Examined, settings: Measuring) -> Measurement:
    from unforgotten.experiments.metrics.items import of_items

    asked, harness = TASKS[name], settings.evaluation.harness
    tasks = _loaded(asked.task, harness.path)
    with _quietly():
        library, models = import_module("lm_eval"), import_module("lm_eval.models.huggingface")
        for one in tasks["tasks"].values():
            one.set_fewshot_seed(seed=FEWSHOT_SEED)
        # a copy of the tokenizer: the harness gives one without a pad token its own
        lm = models.HFLM(
            pretrained=model.model, tokenizer=copy.deepcopy(model.tokenizer), batch_size=settings.evaluation.batch
        )
        found = library.evaluate(lm=lm, task_dict=tasks, limit=harness.limit, bootstrap_iters=0, log_samples=True)
    samples = [sample for task in sorted(found["samples"]) for sample in found["samples"][task]]
    return of_items(name, [100.0 * float(sample[asked.value]) for sample in samples])


def _metric(name: str) -> Metric:
    def measure(model: Examined, probes: Probes, settings: Measuring) -> Measurement:
        del probes
        return _measure(name, model, settings)

    def check(settings: Measuring) -> None:
        _check(name, settings)

    task = TASKS[name]
    meaning = f"{task.meaning}, 0 to 100, by lm-evaluation-harness ({task.task}); on demand, needs extra harness"
    return Metric(name, meaning, measure, on_demand=True, check=check)


METRICS = tuple(map(_metric, TASKS))

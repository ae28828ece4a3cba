"""The rows of a run that say how near its target is to what it stands in for: a Llama-2-7B, assumed or read from files.

    store.append_all(STAGE, likeness(config, states, names, experts))

The learning rate is that of the bfloat16 arm, which decides the edge beyond which bfloat16 swallows a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.matching.kinds import is_quantized
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.models.matrices.experts import expert_names
from unforgotten.experiments.models.saved import check_loadable, load_notes
from unforgotten.experiments.models.saved_states import SavedStates
from unforgotten.experiments.models.shell import Shell
from unforgotten.experiments.stand_in import assumed_rows, stand_in_rows
from unforgotten.records.metrics import ASSUMED
from unforgotten.records.rows import Subject
from unforgotten.records.store import Measurement

STAGE = "stand-in target"
Rows = Mapping[str, list[Measurement]]
Weights = Callable[[], Iterable[NDArray[Any]]]


def likeness(config: RunConfig, states: SavedStates, shell: Shell) -> list[tuple[Subject, list[Measurement]]]:
    """Return the rows of the target by format, then those of the real model; without one, as it is assumed to be.

    Raises:
        ValueError: `stand_in.real` is no directory of safetensors with a `config.json` of transformers.
    """
    lr, real = bf16_lr(config), config.stand_in.real
    dtypes = load_notes(states.models / "target")["dtypes"]
    own = _rows(states.model.config, _of_state(states, shell), lr, config.formats) if shell.names else {}
    found = _subjects("target", own, lr, dtypes)  # none of a model of one's own without matrices that quantizers touch
    if real is None:
        assumed = dict.fromkeys(dtypes, "assumed")
        return found + _subjects(ASSUMED, assumed_rows(lr=lr, formats=config.formats), lr, assumed)
    other = _rows(check_loadable(real), _of_files(real), lr, config.formats)
    return found + _subjects(f"real {real.resolve().name}", other, lr, dict.fromkeys(dtypes, "unknown"))


def bf16_lr(config: RunConfig) -> float:
    """Return the learning rate of the bfloat16 arm; of a run without one, that of the first arm."""
    rates = config.unlearning.lr
    return rates.get("bf16", rates.get("bf16-sr", rates[config.storages[0]]))


def _subjects(model: str, rows: Rows, lr: float, dtypes: Mapping[str, str]) -> list[tuple[Subject, list[Measurement]]]:
    return [(Subject(model, format=name, lr=lr, dtypes=dtypes), measured) for name, measured in rows.items()]


def _rows(shape: Any, weights: Weights, lr: float, formats: Sequence[str]) -> Rows:
    """Return the rows of a model of this configuration of transformers."""
    text = shape.get_text_config()
    matrices = sum(w.size for w in weights())
    embedding = int(text.vocab_size) * int(text.hidden_size)
    tied = embedding / (embedding + matrices) if text.tie_word_embeddings else 0.0
    return stand_in_rows(weights, lr=lr, formats=formats, layers=int(text.num_hidden_layers), tied=tied)


def _of_state(states: SavedStates, shell: Shell) -> Weights:
    state = shell.shown(states.of("target"))
    names = expert_names(shell.names, shell.experts)
    return lambda: (state[name].cpu().numpy() for name in names)


def _of_files(folder: Path) -> Weights:
    checkpoint = open_checkpoint(folder)
    names = [name for name, info in checkpoint.tensors.items() if is_quantized(name, info.shape)]
    if not names:
        raise ValueError(f"stand_in.real must hold matrices that quantizers touch, got {folder}")

    def weights() -> Iterator[NDArray[Any]]:
        return (checkpoint.read(name) for name in names)

    return weights

"""The models of a run as a format leaves them; those that are calibrated are computed once and kept on disk meanwhile.

GPTQ of a model of 135 million weights takes minutes, and a run asks for each Q twice: to measure it, and to decompose what it
lost. In go the name of a model and its state; out comes Q of it, computed or read:

    quantized = QuantizedStates(shell, Path("runs/smollm2/quantized"), revision)
    quantized.of("target", target, "gptq-retain:int4-g64")
    quantized.forget("unlearned-NPO-bf16")
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.shell import Shell
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.quantizers.registry import text_of

FOLDER = "quantized"
"""Folder of a run that holds them until they are no longer needed."""


@dataclass(frozen=True)
class QuantizedStates:
    """Q of the models of a run.

    Attributes:
        shell: shell that quantizes.
        folder: folder of the files, made when the first is written.
        revision: revision of the code; what another one wrote is computed again.
    """

    shell: Shell
    folder: Path
    revision: str

    def of(self, name: str, state: State, format_name: str) -> State:
        """Return Q of a state, or the state itself for "none".

        Args:
            name: name of the model.
            state: its weights.
            format_name: name of a format.

        Raises:
            ValueError: as `Shell.quantized`.
        """
        if text_of(format_name) is None:
            return self.shell.quantized(state, format_name)
        path = self.folder / name / f"{quote(format_name, safe='')}.safetensors"
        stored = self._read(path, state)
        if stored is not None:
            return stored
        found = self.shell.quantized(state, format_name)
        if isinstance(found, RuntimeState):
            return found
        self._write(path, {key: found[key].cpu().contiguous() for key in self.shell.names})
        return self._read(path, state) or found

    def forget(self, name: str | None = None) -> None:
        """Delete what is kept of a model, or of all."""
        shutil.rmtree(self.folder if name is None else self.folder / name, ignore_errors=True)

    def _read(self, path: Path, state: State) -> State | None:
        if not path.exists():
            return None
        file: Any = safe_open(path, "pt")  # has no types
        if (file.metadata() or {}).get("revision") != self.revision:
            return None
        names = frozenset(file.keys())

        def weight(key: str) -> Tensor:
            stored: Tensor = file.get_tensor(key) if key in names else state[key]
            return stored.to(state[key].device)

        return LazyState(state, weight)

    def _write(self, path: Path, weights: dict[str, Tensor]) -> None:
        """Write a file in one step, so that a killed run leaves none that is cut."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            save_file(weights, Path(aside) / path.name, metadata={"revision": self.revision})
            os.replace(Path(aside) / path.name, path)

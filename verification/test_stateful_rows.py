"""The rows of a run that is killed at any byte: what counts as done is there, once, and nothing else is."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

rows = pytest.importorskip("unforgotten.records.store")

STAGES = [f"stage-{i}" for i in range(6)]
EXAMPLES_SHARE = 4
values = st.floats(-1e6, 1e6) | st.just(float("nan")) | st.just(float("inf"))
measurements = st.lists(st.tuples(st.sampled_from(["M1", "M2", "loss"]), values, st.booleans()), max_size=4)


class KilledRuns(RuleBasedStateMachine):
    """The model: what each finished stage measured, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.finished: dict[str, list[tuple[str, float | None]]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def start(self) -> None:
        self.resume()

    @rule()
    def resume(self) -> None:
        """A new process opens the run."""
        self.store = rows.RowStore(self.folder, {"seed": 3, "config": "c", "revision": "r", "device": "cpu"})

    @rule(stage=st.sampled_from(STAGES), measured=measurements)
    def append(self, stage: str, measured: list[tuple[str, float, bool]]) -> None:
        """A stage that runs to its end; one that is done is not run again, as `run` does."""
        if self.store.done(stage):
            return
        self._append(stage, measured)
        self.finished[stage] = [(name, finite(value)) for name, value, _ in measured]

    @rule(stage=st.sampled_from(STAGES), measured=measurements, share=st.floats(0, 1))
    def kill_while_rows_are_written(self, stage: str, measured: list[tuple[str, float, bool]], share: float) -> None:
        """Killed at any byte of the rows, or after them and before the stage is noted: `stages.json` is the old one."""
        if self.store.done(stage):
            return
        path, noted = self.folder / "rows.jsonl", self.folder / "stages.json"
        before, stages = content(path), content(noted)
        self._append(stage, measured)
        written = content(path) or b""
        start = len(before or b"")
        path.write_bytes(written[: start + round(share * (len(written) - start))])
        restore(noted, stages)
        self.resume()

    @rule(stage=st.sampled_from(STAGES))
    def kill_while_the_stage_is_noted(self, stage: str) -> None:
        """Killed inside `os.replace`'s preparation: a temporary file is left beside `stages.json`."""
        if self.store.done(stage):
            return
        (self.folder / ".stages.json.left").write_text('{"stage-0":')
        self.resume()

    @invariant()
    def the_rows_are_those_of_the_finished_stages(self) -> None:
        if not hasattr(self, "store"):
            return
        lines = (content(self.folder / "rows.jsonl") or b"").decode().splitlines()
        found = [json.loads(line) for line in lines]
        expected = [(s, m, v) for s, measured in self.finished.items() for m, v in measured]
        assert [(r["stage"], r["metric"], r["value"]) for r in found] == expected
        assert all(r["seed"] == 3 for r in found)
        assert {s for s in STAGES if self.store.done(s)} == set(self.finished)
        assert self.store.stages == {s: len(measured) for s, measured in self.finished.items()}

    def _append(self, stage: str, measured: list[tuple[str, float, bool]]) -> None:
        subject = rows.Subject("unlearned", method=stage)
        self.store.append(
            stage, subject, [rows.Measurement(m, v, items=(1.0, 2.0) if i else None) for m, v, i in measured]
        )
        kept = {m for m, _, items in measured if items}
        assert not kept or set(self.store.all_items(subject)) == kept


def finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(before)


TestKilledRuns = KilledRuns.TestCase
TestKilledRuns.settings = settings(
    max_examples=max(5, settings().max_examples // EXAMPLES_SHARE), stateful_step_count=15
)

"""Nothing in a test reaches for a hub, and nothing draws on a screen."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or a fork after the first tokenization warns
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture
def audit_refuses(tmp_path: Path) -> Callable[[tuple[Path, Path], Path, Collection[str]], None]:
    """Asserts that auditing a pair ends in one line that begins with the bad path and has the words; nothing is written."""
    from unforgotten.audit import CheckpointError, audit_pair

    def refused(pair: tuple[Path, Path], bad: Path, words: Collection[str]) -> None:
        with pytest.raises(CheckpointError) as caught:
            audit_pair(*pair, ["int8-row"], tmp_path / "out")
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(str(bad))
        assert not [word for word in words if word not in message], message
        assert not (tmp_path / "out").exists()

    return refused

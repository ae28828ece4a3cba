"""What a base model is: where a run begins, before it is trained on the texts that are to be forgotten.

A base is a file of this folder with a module-level `BASES`; `registry.py` finds it there, and a profile sets it by its name as
`base.kind`. One of random weights, which the run trains on general text first, needs its architecture alone, see `scratch.py`;
any other has a class of its own with the fields of `Base`.

`unforgotten models` lists them where torch is missing, so a file of this folder imports what is heavy inside of its functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


class Base(Protocol):
    """Where a run begins."""

    @property
    def name(self) -> str:
        """Name in profiles, `base.kind`."""
        ...

    @property
    def statement(self) -> str:
        """What it is, in a few words."""
        ...

    @property
    def trained(self) -> bool | None:
        """Whether its weights come trained; if not they are random, and the run trains them on general text.

        None where that is so if the profile has `pretraining`.
        """
        ...

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Return the model, float32, and its tokenizer.

        Args:
            config: settings of the base.
            texts: general text of the run, on which a tokenizer may be trained.
            seed: seed of random weights.

        Raises:
            ValueError: a setting breaks a rule of this base, or what it needs is missing.
        """
        ...

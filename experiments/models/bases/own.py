"""A base model of one's own: a function or a `Base`, in a file or a module, under its reference in place of a name.

    unforgotten run tiny --model examples/own_model.py:deep_llama

`base.kind` of a profile takes the same references. A function is called with the settings of the base, general text and a seed, and
returns a causal model of transformers and its tokenizer. The run trains it on general text where the profile has `pretraining`,
and takes it as trained where it has none (`--set pretraining=null`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.models.bases.base import Base
from unforgotten.experiments.own import load_whole, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig

PARTS = ("name", "statement", "trained", "make")
ARGUMENTS = ("config", "texts", "seed")


@cache
def load_own(reference: str) -> Base:
    """Return the base that a reference stands for.

    Raises:
        ValueError: it cannot be loaded, see `load_object`, or is neither a `Base` nor a function of three arguments.
    """
    base: Base = load_whole(reference, "model", "Base", PARTS, ARGUMENTS, FunctionBase)
    return base


@dataclass(frozen=True)
class FunctionBase:
    """A base that is a function of one's own. A `Base`.

    Attributes:
        name: name of the function.
        function: function of the settings of the base, general text and a seed.
        reference: place that it was loaded from.
    """

    name: str
    function: Callable[..., Any]
    reference: str

    @property
    def statement(self) -> str:
        """First line of its docstring."""
        return said_of(self.function, "model")

    @property
    def trained(self) -> None:
        """None: the profile says it, by `pretraining`."""
        return

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Call the function; the model is converted to float32.

        Raises:
            ValueError: it returns no causal model of transformers with a tokenizer, or the tokenizer has more tokens.
        """
        from transformers import PreTrainedModel, PreTrainedTokenizerBase

        made = self.function(config, texts, seed)
        rule = "must return a causal model of transformers and its tokenizer"
        if not isinstance(made, tuple) or len(made) != 2:
            raise ValueError(f"{self.reference}: {rule}, got {type(made).__name__}")
        model, tokenizer = made
        if not isinstance(model, PreTrainedModel) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            given = ", ".join(type(part).__name__ for part in made)
            raise ValueError(f"{self.reference}: {rule}, got {given}")
        head: Any = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{self.reference}: {rule}, got {type(model).__name__} without an output head")
        if len(tokenizer) > head.weight.shape[0]:
            raise ValueError(
                f"{self.reference}: must have a row of its head for each of the tokenizer's {len(tokenizer)} tokens, "
                f"got {head.weight.shape[0]}"
            )
        return model.float(), tokenizer

"""What a quantizer takes and gives."""

from __future__ import annotations

from torch import Tensor

State = dict[str, Tensor]
"""The weights of a model, by name."""

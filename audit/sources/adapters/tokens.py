"""Rows of single tokens that a PEFT adapter puts in place of the base's: `trainable_token_indices` of a LoRA.

The adapter stores the rows themselves, not what is added to them, in the order of the indices of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.flat import tensors_equal
from unforgotten.audit.sources.matching.kinds import embeddings_of_head
from unforgotten.audit.sources.model_config import says_untied
from unforgotten.audit.sources.peft_config import AdapterConfig
from unforgotten.audit.sources.safetensors_header import FLOATS


class TokenRows(NamedTuple):
    """What takes the place of some rows of a matrix.

    Attributes:
        name: name of the adapter's tensor, (tokens, columns).
        indices: rows of the base, one a row of the tensor.
    """

    name: str
    indices: tuple[int, ...]


def token_rows(
    config: AdapterConfig, adapter: Checkpoint, base: Checkpoint, found: Mapping[str, str]
) -> dict[str, TokenRows]:
    """Return the rows of each tensor of the base, also of a head that is stored beside the embedding it is tied to.

    Args:
        config: the adapter's configuration.
        adapter: the adapter's own tensors.
        base: the checkpoint under it.
        found: tensor of the base -> tensor of the adapter.

    Raises:
        CheckpointError: no index, or another number of them, belongs to a tensor; a shape does not fit; an index is
            outside of the matrix.
    """
    rows = {name: _rows_of(config, adapter, base, name, own) for name, own in found.items()}
    for name, own in list(rows.items()):
        for head in base.tensors:
            if head not in rows and name.endswith(embeddings_of_head(head)) and _is_copy(base, head, name):
                rows[head] = own
    return rows


def _is_copy(base: Checkpoint, head: str, name: str) -> bool:
    """Return whether a head is stored as a copy of this embedding, and not said to be untied."""
    own, other = base.tensors[head], base.tensors[name]
    alike = (own.shape, own.dtype) == (other.shape, other.dtype)
    return alike and not says_untied(base) and tensors_equal(base, head, base, name)


def _rows_of(config: AdapterConfig, adapter: Checkpoint, base: Checkpoint, name: str, own: str) -> TokenRows:
    path = adapter.tensors[own].path
    under = base.tensors[name]
    if under.dtype not in FLOATS.values() or len(under.shape) != 2:
        rule = f"must be rows of a matrix of {', '.join(FLOATS)} in the base"
        raise CheckpointError(path, rule, f"{under.dtype.name} {list(under.shape)}", tensor=own)
    indices = config.tokens_of(name.removesuffix(".weight"))
    if indices is None:
        raise CheckpointError(config.path, f"must have trainable_token_indices of {name!r}", "none")
    wanted = [len(indices), under.shape[1]]
    if list(adapter.tensors[own].shape) != wanted:
        rule = f"must have the shape {wanted} of its indices and base"
        raise CheckpointError(path, rule, list(adapter.tensors[own].shape), tensor=own)
    if max(indices, default=0) >= under.shape[0]:
        rule = f"must have trainable_token_indices below the {under.shape[0]} rows of {name!r}"
        raise CheckpointError(config.path, rule, max(indices))
    return TokenRows(own, indices)


def put_rows(w: NDArray[Any], start: int, rows: TokenRows, values: NDArray[Any]) -> NDArray[Any]:
    """Return rows of a matrix with those of the adapter in their place, rounded to its dtype.

    Args:
        w: rows start … of the matrix.
        start: row of the matrix that `w` begins with.
        rows: which rows the adapter has.
        values: those rows, (tokens, columns).
    """
    at = np.array(rows.indices, np.int64) - start
    inside = (at >= 0) & (at < len(w))
    found = w.copy()
    with np.errstate(all="ignore"):  # what is not finite is found by name where it is used
        found[at[inside]] = values[inside].astype(np.float32).astype(w.dtype)
    return found

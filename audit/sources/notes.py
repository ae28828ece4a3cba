"""What a reader of an audit must know of how a file was read: sentences that a checkpoint carries with it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from unforgotten.audit.sources.errors import one_line

MAX_NAMED = 3  # tensors named in a note


@runtime_checkable
class Noted(Protocol):
    """A checkpoint with something to say."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Whole sentences, each on one line."""
        ...


def notes_of(*checkpoints: object) -> tuple[str, ...]:
    """Return the notes of checkpoints, each sentence once and in order."""
    found = [note for checkpoint in checkpoints if isinstance(checkpoint, Noted) for note in checkpoint.notes]
    return tuple(dict.fromkeys(one_line(note) for note in found))


def named(names: list[str]) -> str:
    """Return the first names of a list for a sentence, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(ascii(name) for name in names[:MAX_NAMED]) + more

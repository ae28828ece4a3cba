"""The one error of a checkpoint that breaks a rule."""

from __future__ import annotations

from pathlib import Path

MAX_SHOWN = 120  # characters of a hostile value in a message


class CheckpointError(ValueError):
    """A checkpoint breaks a rule. The message is one line: file, tensor where there is one, rule and value."""

    def __init__(self, path: Path | str, rule: str, got: object, *, tensor: str | None = None) -> None:
        where = one_line(str(path)) + (f": tensor {_short(repr(tensor))}" if tensor is not None else "")
        super().__init__(f"{where} {one_line(rule)}, got {_short(one_line(str(got)))}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle an error as its message: a worker's error is raised again where its result is asked for."""
        return _again, (str(self),)


def _again(message: str) -> CheckpointError:
    error = CheckpointError.__new__(CheckpointError)
    ValueError.__init__(error, message)
    return error


def one_line(text: str) -> str:
    """Return the text if it is printable, else with its control characters written out."""
    return text if text.isprintable() else ascii(text)


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"

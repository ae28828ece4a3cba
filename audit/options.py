"""The options of an audit, checked before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.run import DEFAULT_FORMATS, VERDICTS
from unforgotten.theory.formats.names import format_named


class Options(NamedTuple):
    """What was asked for.

    Attributes:
        formats: names of the formats, as given; None for the default.
        measured: the formats that the legs of output and behaviour run in.
        fatal: the verdicts that end with code 1.
        needs_models: whether a leg runs the models.
    """

    formats: Sequence[str] | None
    measured: Sequence[str]
    fatal: Sequence[str]
    needs_models: bool


def read_options(
    formats: str | None,
    fail_on: str,
    texts: Path | None,
    benchmark: Path | None,
    retrained: Path | None,
    jobs: int,
    ray: str | None,
) -> Options:
    """Read the options of the command line.

    Raises:
        ValueError: one breaks its rule.
    """
    named = None if formats is None else tuple(name for name in formats.split(",") if name)
    if named is not None and not named:
        raise ValueError(f"--formats must name at least one format, got {formats!r}")
    for name in named or ():
        format_named(name)
    fatal = tuple(verdict for verdict in fail_on.split(",") if verdict)
    for verdict in fatal:
        if verdict not in VERDICTS:
            raise ValueError(f"--fail-on must be of {', '.join(VERDICTS)}, got {verdict!r}")
    if texts is not None and not texts.is_file():
        raise ValueError(f"--texts must be a file that exists, got {str(texts)!r}")
    for option, folder in (("--benchmark", benchmark), ("--retrained", retrained)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option} must be a directory that exists, got {str(folder)!r}")
    if retrained is not None and benchmark is None:
        raise ValueError(f"--retrained needs --benchmark, got {str(retrained)!r}")
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    if ray is not None and not ray.strip():
        raise ValueError(f"--ray must be an address, as auto or ray://host:port, got {ray!r}")
    needs_models = texts is not None or benchmark is not None
    return Options(named, named or DEFAULT_FORMATS, fatal, needs_models)

"""The options of an audit, checked before a weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.findings.recipe import GivenRecipe, Recipe, read_recipe
from unforgotten.audit.judged.judge import read_judged, with_note
from unforgotten.audit.mixes.mix import check_name
from unforgotten.audit.run import DEFAULT_FORMATS
from unforgotten.audit.verdict.gate import read_words
from unforgotten.audit.verdict.legs import DEPLOYED, BehaviourLeg

DEVICE = re.compile(r"auto|balanced|cpu|mps|cuda(:\d+)?")
RUNTIMES = ("simulated", "deployed")
DTYPES = ("float32", "bfloat16", "float16", "auto")
LEAST_ITEMS = 2
"""Of which a mean has an error."""


class Asked(NamedTuple):
    """What the command line was given, unchecked; see `unforgotten audit --help`."""

    formats: Sequence[str] | None = None
    fail_on: str = ""
    texts: Path | None = None
    benchmark: Path | None = None
    retrained: Path | None = None
    jobs: int = 1
    ray: str | None = None
    recipe: GivenRecipe = GivenRecipe()
    items: int | None = None
    judged: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    deployed: tuple[str, str] | None = None
    runtime: str = "simulated"


class Options(NamedTuple):
    """What was asked for.

    Attributes:
        formats: names of the formats, as given; None for the default.
        measured: the formats that the legs of output and behaviour run in.
        fatal: the words that end with code 1.
        needs_models: whether a leg runs the models.
        recipe: recipe of the training, where it was given or stands beside the checkpoint.
        judged: function that returns the behaviour leg of an evaluation made elsewhere; None without one.
        real: quantized models that their own library runs; None without them.
    """

    formats: Sequence[str] | None
    measured: Sequence[str]
    fatal: Sequence[str]
    needs_models: bool
    recipe: Recipe | None
    judged: Callable[[], BehaviourLeg] | None = None
    real: tuple[str, str] | None = None


def read_options(asked: Asked, unlearned: str) -> Options:
    """Read the options of the command line.

    Raises:
        ValueError: one breaks its rule.
    """
    named = read_formats(asked.formats)
    models = [name for name in ("texts", "benchmark") if getattr(asked, name) is not None]
    _check_files(asked)
    judged = None if asked.judged is None else partial(with_note, read_judged(asked.judged), named or DEFAULT_FORMATS)
    fatal = read_words(asked.fail_on, models if judged is None else [*models, "benchmark"])
    if not DEVICE.fullmatch(asked.device):
        raise ValueError(f"--device must be auto, balanced, cpu, mps, cuda or cuda:N, got {asked.device!r}")
    if asked.device != "cpu" and not models:
        raise ValueError(f"--device needs --texts or --benchmark, got {asked.device!r}")
    if asked.dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {asked.dtype!r}")
    if asked.dtype != "float32" and not models:
        raise ValueError(f"--dtype needs --texts or --benchmark, got {asked.dtype!r}")
    if asked.runtime not in RUNTIMES:
        raise ValueError(f"--runtime must be one of {', '.join(RUNTIMES)}, got {asked.runtime!r}")
    if asked.runtime != RUNTIMES[0] and (asked.deployed is None or not models):
        raise ValueError(f"--runtime {asked.runtime} needs --deployed, and --texts or --benchmark")
    if asked.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {asked.jobs}")
    if asked.ray is not None and not asked.ray.strip():
        raise ValueError(f"--ray must be an address, as auto or ray://host:port, got {asked.ray!r}")
    recipe = read_recipe(unlearned, asked.recipe)
    real = asked.deployed if asked.runtime == DEPLOYED else None
    return Options(named, named or DEFAULT_FORMATS, fatal, bool(models), recipe, judged, real)


def read_formats(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of all --formats, each of which may hold several, with commas; one that comes twice counts once."""
    if not given:
        return None
    named = tuple(dict.fromkeys(name for text in given for name in text.split(",") if name))
    if not named:
        raise ValueError(f"--formats must name at least one format, got {','.join(given)!r}")
    for name in named:
        check_name(name)
    return named


def _check_files(asked: Asked) -> None:
    if asked.texts is not None and not asked.texts.is_file():
        raise ValueError(f"--texts must be a file that exists, got {str(asked.texts)!r}")
    for option, folder in (("--benchmark", asked.benchmark), ("--retrained", asked.retrained)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{option} must be a directory that exists, got {str(folder)!r}")
    if asked.retrained is not None and asked.benchmark is None:
        raise ValueError(f"--retrained needs --benchmark, got {str(asked.retrained)!r}")
    if asked.judged is not None and asked.benchmark is not None:
        raise ValueError(
            f"--judged must stand without --benchmark, got {str(asked.judged)!r} beside {str(asked.benchmark)!r}"
        )
    if asked.items is not None and asked.benchmark is None:
        raise ValueError(f"--items needs --benchmark, got {asked.items}")
    if asked.items is not None and asked.items < LEAST_ITEMS:
        raise ValueError(f"--items must be at least {LEAST_ITEMS}, got {asked.items}")

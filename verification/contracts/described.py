"""A quantizer of somebody else, with what its author claims of it. What is not claimed is not tested.

Takes what an author gives, a function, a class, an object or `module:object`; gives a `Quantizer`, whose fields
say which contracts it is held to.

>>> describe(lambda w: w, name="identity").name
'identity'
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.names import Format, format_named
from unforgotten.verification.oracles import MAX32, U32

Array = NDArray[Any]
Ties = Literal["half-even", "half-even-label", "half-lower", "half-up", "half-away"]
Statistic = Literal["absmax", "signed-absmax", "range", "min-max"]
Block = Literal["tensor", "row", "group", "flat"]
STATISTICS: tuple[str, ...] = ("absmax", "signed-absmax", "range", "min-max")
BLOCKS: tuple[str, ...] = ("tensor", "row", "group", "flat")
LARGEST = 2.0**115  # a factor 127 on the way to a value still fits float32, and 1 / absmax is no subnormal
U16 = 2.0**-11
TINY16 = 2.0**-14


@runtime_checkable
class QuantizerLike(Protocol):
    """All that is needed: `quantize`. Other attributes, named as the fields of `Quantizer`, are claims."""

    def quantize(self, w: Array, /) -> Array:
        """Turn float32 weights (rows, columns) into the values, of the same shape, that the model computes with."""
        ...


@dataclass(frozen=True)
class Quantizer:
    """A quantizer and its author's claims. In code units a weight is `v = (w - low) / step + zero`.

    Attributes:
        quantize: float32 weights (rows, columns) to values of the same shape.
        name: for messages.
        codes: weights to indices into `levels`, in the same shape.
        format: the name of one of our formats that it equals bit for bit.
        block: weights that share a grid. "group": `block_size` neighbours in a row; "flat": of the flattened tensor.
        block_size: for "group" and "flat".
        whole_blocks: whether it takes rows of whole blocks only.
        independent: whether the values of a block depend on nothing outside it.
        levels: the values of the codes in code units, ascending.
        labels: number that is stored for each level, for ties "half-even-label"; by default the index.
        statistic: number that sets the grid of a block: "absmax"; "signed-absmax", the first entry with that magnitude;
            "range", min and max widened to contain 0, with a zero point that is rounded to an integer; "min-max", as
            they are, the lowest level being the minimum.
        divisor: step = statistic / divisor; by default the largest level, or the distance of the end levels.
        floor: a smaller statistic is unreadable: the step may be that of `floor`, or the block may become 0.
        scale_roundoff: relative error of a stored parameter, 2^-24 for float32, 2^-11 for float16.
        ties: place of a weight halfway between two levels. "half-even": to the even integer before a zero point is
            added; "half-even-label": to the level whose label is even; "half-lower", "half-up": down or up in code
            units; "half-away": from 0, in the same units as "half-even".
        exact_zero: whether 0 becomes 0.
        symmetric: whether Q(-w) = -Q(w).
        scales: whether Q(2^k w) = 2^k Q(w).
        idempotent: claim that Q(Q(w)) = Q(w) where a block keeps its statistic: "exact", or "rounded" to a few units.
        smallest: contracts on exact scaling meet weights that are 0 or at least this.
        largest: no weight is larger.
    """

    quantize: Callable[[Array], Array]
    name: str = "quantizer"
    codes: Callable[[Array], Array] | None = None
    format: str | None = None
    block: Block | None = None
    block_size: int | None = None
    whole_blocks: bool = False
    independent: bool = True
    levels: tuple[float, ...] | None = None
    labels: tuple[int, ...] | None = None
    statistic: Statistic = "absmax"
    divisor: float | None = None
    floor: float = 0.0
    scale_roundoff: float = U32
    ties: Ties | None = None
    exact_zero: bool = False
    symmetric: bool = False
    scales: bool = False
    idempotent: Literal["exact", "rounded"] | None = None
    smallest: float = 2.0**-60
    largest: float = LARGEST

    def __post_init__(self) -> None:
        """Refuse claims that contradict each other.

        Raises:
            ValueError: a name is unknown, a size is missing, or the levels do not ascend.
        """
        _one_of("block", self.block, (None, *BLOCKS))
        _one_of("statistic", self.statistic, STATISTICS)
        _one_of("ties", self.ties, (None, *Ties.__args__))  # type: ignore[attr-defined]
        _one_of("idempotent", self.idempotent, (None, "exact", "rounded"))
        needs_size = self.block in ("group", "flat")
        if needs_size != (self.block_size is not None and self.block_size > 0):
            rule = "be positive" if needs_size else "be None"
            raise ValueError(f"block_size must {rule} for block={self.block!r}, got block_size={self.block_size!r}")
        if self.levels is not None and (len(self.levels) < 2 or (np.diff(self.levels) < 0).any()):
            raise ValueError(f"levels must ascend, at least two, got levels={self.levels!r}")
        if self.labels is not None and len(self.labels) != len(self.levels or ()):
            raise ValueError(f"labels must be as many as levels, got {len(self.labels)} labels")
        if self.format is not None:
            format_named(self.format)

    @property
    def step_divisor(self) -> float:
        """The divisor, or what the levels imply."""
        if self.divisor is not None or self.levels is None:
            return self.divisor or 127.0
        if self.statistic in ("absmax", "signed-absmax"):
            return max(abs(self.levels[0]), abs(self.levels[-1]))
        return self.levels[-1] - self.levels[0]


def _one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        options = ", ".join(str(x) for x in known if x is not None)
        raise ValueError(f"{name} must be one of {options}, got {name}={value!r}")


def claims_of(fmt: Format) -> dict[str, Any]:
    """Return the claims of our format, as fields of `Quantizer`; no levels where no contract knows its scale rule."""
    smallest_reciprocal = 2 * abs(fmt.divisor) / float(MAX32)  # below it 1 / scale overflows
    floor = max(fmt.floor, fmt.least_scale * fmt.divisor, smallest_reciprocal)
    claims: dict[str, Any] = {
        "format": fmt.name,
        "block": None if fmt.tile else fmt.block,
        "block_size": None if fmt.tile else fmt.block_size,
        "whole_blocks": fmt.whole_blocks,
        "exact_zero": fmt.zero in ("none", "whole"),
        "independent": not fmt.tensor_range and fmt.statistic not in ("hqq-proximal", "nested-absmax"),
    }
    statistic = {"hqq": "min-max"}.get(fmt.statistic, fmt.statistic)
    if statistic not in STATISTICS or fmt.scale_rule != "quotient":
        return claims
    if fmt.statistic == "hqq":
        floor = fmt.divisor / 2e4  # the inverse of the scale is clipped there
    if fmt.storage == "float16":
        floor = abs(fmt.divisor) * TINY16  # subnormal below
        claims |= {"scale_roundoff": U16, "largest": 30_000.0, "smallest": 2.0**-8}
    mirrored = fmt.levels == tuple(-x for x in reversed(fmt.levels))
    fair = fmt.rounding in ("half-even", "half-away", "half-even-label")
    even = fmt.rounding == "half-even" and fmt.zero_first
    return claims | {
        "levels": fmt.levels,
        "labels": fmt.labels,
        "statistic": statistic,
        "divisor": fmt.divisor,
        "floor": floor,
        "ties": "half-even-label" if even else fmt.rounding,
        "symmetric": mirrored and fair and statistic == "absmax",
        "scales": fmt.statistic != "hqq" and fmt.storage == "float32",
        "idempotent": "exact" if fmt.arithmetic == "multiply" and fmt.unit == 1.0 else "rounded",
    }


def claiming(name: str, fmt: str, quantize: Callable[[Array], Array], **claims: Any) -> Quantizer:
    """Return a quantizer that claims to be our format `fmt`, but for what `claims` replace."""
    return Quantizer(quantize, name, **(claims_of(format_named(fmt)) | claims))


def describe(thing: object, *, name: str) -> Quantizer:
    """Turn what an author gives into a `Quantizer`: one, an object or class with `quantize`, a function, or a factory.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(thing, Quantizer):
        return thing
    if isinstance(thing, type) or (callable(thing) and _takes_nothing(thing)):
        return describe(thing(), name=name)
    if isinstance(thing, QuantizerLike):
        claimed: dict[str, Any] = {f.name: getattr(thing, f.name) for f in fields(Quantizer) if hasattr(thing, f.name)}
        return Quantizer(**{"name": name, **claimed})
    if callable(thing):
        return Quantizer(cast(Callable[[Array], Array], thing), name)
    raise ValueError(f"a quantizer must be callable or have quantize(w), got {name}={thing!r}")


def load(path: str) -> Quantizer:
    """Load the quantizer at `module:object`; modules of the working directory are found too.

    Raises:
        ValueError: there is no such module or object, it cannot be imported, or it is no quantizer.
    """
    module_name, colon, object_name = path.partition(":")
    if not (colon and module_name and object_name):
        raise ValueError(f"--quantizer must be module:object, got {path!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        thing: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever a stranger's module raises
        raise ValueError(f"--quantizer {path}: {type(error).__name__}: {error}") from error
    for part in object_name.split("."):
        if not hasattr(thing, part):
            raise ValueError(f"--quantizer {path}: {module_name} has no {object_name!r}")
        thing = getattr(thing, part)
    return describe(thing, name=path)


def _takes_nothing(thing: Callable[..., object]) -> bool:
    parameters = inspect.signature(thing).parameters.values()
    return not any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)

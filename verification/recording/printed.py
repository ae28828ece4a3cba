"""Whether what is printed here is what another machine printed, but for the last printed digit of its numbers.

A committed text or picture was made by one machine, and a test makes it again on another, whose log, exp and powers
differ by a last digit of float64. Printed with few digits a number is then the same, or one unit of its last digit away
where it lay on the border between two. So: words, elements and whole numbers are equal, and a number with a fraction
differs by one unit of its last digit at most. A picture also names its parts by hashes of their coordinates: names are
compared by the order in which they are given.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from decimal import Decimal
from itertools import zip_longest

NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
WHOLE = re.compile(r"-?\d+")
PICTURE_UNIT = Decimal("1e-6")
"""Matplotlib writes coordinates with six decimals, and leaves out zeros at the end."""


def text_differences(made: str, kept: str) -> list[str]:
    """List where two texts differ by more than the last printed digit of a number, line by line."""
    lines = zip_longest(made.splitlines(), kept.splitlines(), fillvalue="")
    return [f"{one!r} and {other!r}" for one, other in lines if not alike(one, other)]


def picture_differences(made: bytes, kept: bytes) -> list[str]:
    """List where two SVG pictures differ: in elements, names of attributes, texts, or a unit of a coordinate."""
    pairs = zip_longest(_parts(made), _parts(kept), fillvalue=("end", ""))
    return [
        f"{kind} {one!r} and {other_kind} {other!r}"
        for (kind, one), (other_kind, other) in pairs
        if kind != other_kind or not alike(one, other, None if kind == "text" else PICTURE_UNIT)
    ]


def alike(one: str, other: str, unit: Decimal | None = None) -> bool:
    """Tell whether two texts have equal words, and numbers a `unit` apart at most: by default the last digit's own."""
    parts, others = NUMBER.split(one), NUMBER.split(other)
    return (
        len(parts) == len(others)
        and parts[::2] == others[::2]
        and all(map(lambda a, b: _near(a, b, unit), parts[1::2], others[1::2]))
    )


def _near(one: str, other: str, unit: Decimal | None) -> bool:
    if one == other:
        return True
    a, b = Decimal(one), Decimal(other)
    if unit is None:
        if WHOLE.fullmatch(one) and WHOLE.fullmatch(other):
            return False
        unit = Decimal(1).scaleb(min(_exponent(a), _exponent(b)))
    return abs(a - b) <= unit


def _exponent(x: Decimal) -> int:
    """Return the power of ten of the last printed digit."""
    exponent = x.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent


def _parts(picture: bytes) -> Iterator[tuple[str, str]]:
    """Yield the elements in order, each with its attributes by name, and its text."""
    for element in ET.fromstring(_renamed(picture.decode())).iter():
        yield "element", element.tag
        for name, value in sorted(element.attrib.items()):
            yield f"attribute {name}", value
        yield "text", " ".join(f"{element.text or ''} {element.tail or ''}".split())


def _renamed(picture: str) -> str:
    """Replace the names of a picture by their numbers, where they are given and where they are used."""
    names = re.findall(r'(?<= id=")[^"]*', picture)
    number = {name: f"name{i}" for i, name in enumerate(dict.fromkeys(names))}
    return re.sub(
        r'(?<= id=")[^"]*|(?<="#)[^"]*|(?<=url\(#)[^)]*', lambda match: number.get(match[0], match[0]), picture
    )

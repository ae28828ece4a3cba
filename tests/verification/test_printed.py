"""What counts as printed alike: a last digit may differ, and nothing else."""

from __future__ import annotations

import pytest

from unforgotten.verification.recording.printed import picture_differences, text_differences

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">
 <defs><path id="m1a2b" d="M 0 0 L 0 -3.5"/></defs>
 <use xlink:href="#m1a2b" x="58.390392" style="fill: #1b1f24"/>
 <g clip-path="url(#p99)"><text x="3">cosine 0.125</text></g>
 <clipPath id="p99"><rect width="300.5"/></clipPath>
</svg>"""


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ("gain 0.125 in 3 of 4", "gain 0.126 in 3 of 4"),
        ("p = 1.5e-07", "p = 1.6e-07"),
        ("step 0.1", "step 0.100001"),  # zeros at the end are not printed
        ("9.99 %", "10 %"),
        ("-0.01", "0.0"),
    ],
)
def test_a_last_digit_may_differ(made: str, kept: str) -> None:
    assert text_differences(made, kept) == text_differences(kept, made) == []


@pytest.mark.parametrize(
    ("made", "kept"),
    [
        ("gain 0.125", "gain 0.127"),
        ("p = 1.5e-07", "p = 1.5e-08"),
        ("3 of 4", "4 of 4"),
        ("1,048,576 codes", "1,048,577 codes"),
        ("gain 0.125", "loss 0.125"),
        ("gain 0.125", "gain -0.125"),
        ("gain 0.125", "gain 0.125 of"),
        ("one\n", "one\ntwo\n"),
    ],
)
def test_nothing_else_may(made: str, kept: str) -> None:
    assert len(text_differences(made, kept)) == len(text_differences(kept, made)) == 1


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("58.390392", "58.390393"),
        ("-3.5", "-3.499999"),
        ("300.5", "300.500001"),
        ("m1a2b", "mffff"),
        ("p99", "pcf829"),
        ("0.125", "0.126"),
    ],
)
def test_pictures_are_alike_by_a_unit_and_by_the_order_of_names(part: str, other: str) -> None:
    assert picture_differences(SVG.replace(part, other).encode(), SVG.encode()) == []


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("58.390392", "58.390394"),
        ("300.5", "300.6"),
        ("#1b1f24", "#1b1f25"),
        ('x="3"', 'y="3"'),
        ("use", "image"),
        ("cosine", "sine"),
        ("0.125", "0.127"),
        ("url(#p99)", "url(#m1a2b)"),
        ('<rect width="300.5"/>', ""),
    ],
)
def test_pictures_differ_by_anything_else(part: str, other: str) -> None:
    assert picture_differences(SVG.replace(part, other).encode(), SVG.encode())

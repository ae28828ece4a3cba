"""T1 and T3 over the reals: cells are intervals, a block's preimage is their product, and displacement is sandwiched.

Each statement is built by a function whose keywords hold what a wrong version would have instead, so that the tests
can ask z3 to refute the wrong one.

A proof takes nothing and returns nothing; it raises AssertionError where its statement fails.

>>> nearest_level_cells_are_intervals()
"""

# pyright: reportOperatorIssue=false
# z3 declares unions of every kind of expression, and sums of those that have no sum.
from __future__ import annotations

import operator
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import z3

from unforgotten.theory.claims import proof
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.proofs.smt import Statement, count, largest, prove, reals, size

BLOCK_SIZES = (1, 2, 3, 4)
CODEBOOK_SIZES = range(2, 17)
U32 = Fraction(1, 2**24)
FORMATS = (
    *(
        f"int{bits}-g4{rule}"
        for bits in range(2, 9)
        for rule in ("", "-asym", "-paper", "-ct", "-ct-asym", "-ao", "-ao-asym")
    ),
    *(f"hqq{bits}-g4" for bits in range(2, 9)),
    *("nf4-b4", "fp4-b4", "nf4-b4-dq", "fp4-b4-dq", "llmint8-row", "fp8-row", "fp8-b2x2", "fp8-cast"),
    *("mxfp4-b4", "mxfp4-b4-ct", "nvfp4"),
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
)


def every_format() -> Iterator[Format]:
    """Yield one member of every family of formats, at every number of bits."""
    return (format_named(name) for name in FORMATS)


def nearest_statement(levels: int, k: int, *, place: Fraction = Fraction(1, 2)) -> Statement:
    """State that level k is a nearest one iff v lies between the midpoints to its neighbours, ends unbounded."""
    level, v = reals("level", levels), z3.Real("v")
    nearest = z3.And([size(v - level[k]) <= size(v - other) for other in level])
    at = [a + (b - a) * z3.Q(place.numerator, place.denominator) for a, b in pairwise(level)]
    cell = z3.And(at[k - 1] <= v if k else z3.BoolVal(True), v <= at[k] if k < levels - 1 else z3.BoolVal(True))
    return Statement(tuple(a < b for a, b in pairwise(level)), nearest == cell)


@proof("T1", method="smt", domain="every strictly ascending codebook of 2 to 16 real levels")
def nearest_level_cells_are_intervals() -> None:
    """{v : |v - l_k| <= |v - l_j| for all j} = [(l_{k-1} + l_k)/2, (l_k + l_{k+1})/2]."""
    prove(*(nearest_statement(n, k) for n in CODEBOOK_SIZES for k in range(n)))


def counted_statement(levels: int, k: int, *, closed_above: bool = True) -> Statement:
    """State that #{j : t_j < v} = k iff t_k < v <= t_{k+1}: how the kernels of codebooks find a code."""
    threshold, v = reals("threshold", levels - 1), z3.Real("v")
    low = threshold[k - 1] if k else v - 1
    high = threshold[k] if k < levels - 1 else v + 1
    cell = z3.And(low < v, v <= high) if closed_above else z3.And(low <= v, v < high)
    ascending = tuple(a <= b for a, b in pairwise(threshold))
    return Statement(ascending, (count([t < v for t in threshold]) == k) == cell)


@proof("T1", method="smt", domain="2 to 16 codes, thresholds ascending or equal (FP4's two zeros)")
def counted_cells_are_intervals() -> None:
    """{v : #{j : t_j < v} = k} = (t_k, t_{k+1}]: a tie goes to the lower level."""
    prove(*(counted_statement(n, k) for n in CODEBOOK_SIZES for k in range(n)))


def labelled_statement(levels: int, k: int, *, tie_to_even: bool = True) -> Statement:
    """State `counted_statement`, but a tie goes to the level whose label is even, as floats are rounded."""
    threshold, v = reals("threshold", levels - 1), z3.Real("v")
    even = [z3.Bool(f"even{i}") for i in range(levels)]
    below, up_to = (count([c(t, v) for t in threshold]) for c in (operator.lt, operator.le))
    stays = z3.Or([z3.And(below == i, even[i]) for i in range(levels)])
    code = z3.If(stays, below, up_to)
    inside = z3.BoolVal(True)
    if k:
        inside = z3.And(inside, z3.Or(threshold[k - 1] < v, z3.And(threshold[k - 1] == v, even[k])))
    if k < levels - 1:
        closed = even[k] if tie_to_even else z3.Not(even[k])
        inside = z3.And(inside, z3.Or(v < threshold[k], z3.And(v == threshold[k], closed)))
    alternate = [a != b for a, b in pairwise(even)]
    ascending = [a < b for a, b in pairwise(threshold)]
    return Statement((*alternate, *ascending), (code == k) == inside)


@proof("T1", method="smt", domain="2 to 16 codes whose labels alternate between even and odd (E2M1, E4M3)")
def labelled_cells_are_intervals() -> None:
    """{v : code(v) = k} is (t_k, t_{k+1}) and both its ends if the label of k is even, neither if it is odd."""
    prove(*(labelled_statement(n, k) for n in CODEBOOK_SIZES for k in range(n)))


def _rounded(rule: str, v: Any, n: Any) -> Any:
    """State that n is v rounded to an integer by a rule."""
    twice_v, twice_n = 2 * v, 2 * z3.ToReal(n)
    up = z3.And(twice_n <= twice_v + 1, twice_v + 1 < twice_n + 2)
    down = z3.And(-twice_n <= 1 - twice_v, 1 - twice_v < 2 - twice_n)
    tie = z3.Or(twice_n == twice_v - 1, twice_n == twice_v + 1)
    even = z3.And(twice_v - 1 <= twice_n, twice_n <= twice_v + 1, z3.Implies(tie, n % 2 == 0))
    return {"half-up": up, "half-away": z3.If(v >= 0, up, down)}.get(rule, even)


def _closed(rule: str, k: Any, zero: Any) -> tuple[Any, Any]:
    """Tell whether the cell of code k holds its lower and its upper end."""
    even, even_code = (k - zero) % 2 == 0, k % 2 == 0
    return {
        "half-even": (even, even),
        "half-even, zero first": (even_code, even_code),
        "half-up": (z3.BoolVal(True), z3.BoolVal(False)),
        "half-away": (k > zero, k < zero),
    }[rule]


def integer_statement(rule: str, *, ends: str | None = None) -> Statement:
    """State that clip(round(v) + zero) = k iff v + zero lies within 1/2 of k, ends as the rule for ties has them."""
    v, (n, k, low, high, zero) = z3.Real("v"), z3.Ints("n k low high zero")
    first = rule == "half-even, zero first"
    number = n if first else n + zero
    code = z3.If(number < low, low, z3.If(number > high, high, number))
    gap = 2 * (v + z3.ToReal(zero) - z3.ToReal(k))
    low_closed, high_closed = _closed(ends or rule, k, zero)
    cell = z3.And(
        z3.Or(k == low, gap > -1, z3.And(gap == -1, low_closed)),
        z3.Or(k == high, gap < 1, z3.And(gap == 1, high_closed)),
    )
    rounded = _rounded(rule, v + z3.ToReal(zero) if first else v, n)
    return Statement((rounded, low < high, low <= k, k <= high), (code == k) == cell)


INTEGER_RULES = ("half-even", "half-even, zero first", "half-up", "half-away")


@proof("T1", method="smt", domain="integer grids of every number of bits, range and zero point; 4 rules for ties")
def integer_cells_are_intervals() -> None:
    """{v : code(v) = k} = [k - z - 1/2, k - z + 1/2], end cells unbounded; which ends it holds depends on the rule.

    Half-even: both iff k - z is even, or k where the zero point is added first. Half-up: the lower. Half-away: the end
    that is nearer to 0.
    """
    prove(*(integer_statement(rule) for rule in INTEGER_RULES))


def block_statement(block: int, *, same_statistic: bool = True) -> Statement:
    """State that equal scale and codes iff max|w'| = max|w| and every w'_i lies in s times its cell (a_i, b_i]."""
    w, w_new, low, high = (reals(name, block) for name in ("w", "w_new", "low", "high"))
    absmax, absmax_new = (largest([size(x) for x in xs]) for xs in (w, w_new))
    divisor, s, s_new = z3.Reals("divisor s s_new")
    codes = [z3.And(a < x / s_new, x / s_new <= b) for x, a, b in zip(w_new, low, high, strict=True)]
    product = [z3.And(a * s < x, x <= b * s) for x, a, b in zip(w_new, low, high, strict=True)]
    given = (divisor > 0, absmax > 0, absmax_new > 0, s == absmax / divisor, s_new == absmax_new / divisor)
    if not same_statistic:
        return Statement(given, z3.Implies(z3.And(product), z3.And(codes)))
    return Statement(given, z3.And(s_new == s, *codes) == z3.And(absmax_new == absmax, *product))


@proof("T1", method="smt", domain="absmax scales, blocks of 1 to 4, any cells and divisor")
def block_preimage_is_a_product() -> None:
    """{w' : parameters and codes of w} = {w' : max|w'| = max|w|} cut with the product of the scaled cells."""
    prove(*(block_statement(n) for n in BLOCK_SIZES))


def stored_threshold_gaps(fmt: Format) -> Iterator[tuple[Fraction, Fraction, Fraction]]:
    """Yield (stored threshold, midpoint, distance to the nearest level) between neighbouring levels, exact."""
    for (a, b), t in zip(pairwise(fmt.levels), fmt.thresholds.tolist(), strict=True):
        low, high, stored = Fraction(a), Fraction(b), Fraction(t)
        yield stored, (low + high) / 2, min(stored - low, high - stored)


@proof("T1", method="exact", domain="every family of formats, 2 to 8 bits")
def stored_thresholds_are_midpoints_rounded() -> None:
    """|t_k - (l_{k-1} + l_k)/2| <= 2^-24 |midpoint|, and no threshold passes a level.

    So a kernel's cell is the nearest-level cell up to one rounding of its ends; NF4's are not exact midpoints.
    """
    for fmt in every_format():
        for stored, midpoint, inside in stored_threshold_gaps(fmt):
            assert abs(stored - midpoint) <= U32 * abs(midpoint), f"{fmt.name}: {stored}"
            assert inside >= 0, f"{fmt.name}: {stored}"


def displacement_statement(block: int, *, both_errors: bool = True) -> Statement:
    """State that | |D_i| - |delta_i| | <= e_i + e'_i for entries, for the largest ones, and for the sums of sizes."""
    w, delta, q, q_new = (reals(name, block) for name in ("w", "delta", "q", "q_new"))
    moved = [size(b - a) for a, b in zip(q, q_new, strict=True)]
    asked = [size(d) for d in delta]
    before = [size(a - x) for a, x in zip(q, w, strict=True)]
    after = [size(b - (x + d)) for b, x, d in zip(q_new, w, delta, strict=True)]
    kept = 1 if both_errors else 0
    bounds = [size(norm(moved) - norm(asked)) <= norm(before) + kept * norm(after) for norm in (largest, z3.Sum)]
    entries = [size(m - d) <= e + kept * f for m, d, e, f in zip(moved, asked, before, after, strict=True)]
    return Statement((), z3.And(*entries, *bounds))


@proof("T3", method="smt", domain="any two reconstructions, blocks of 1 to 4; entries, max and sum norm")
def displacement_is_sandwiched() -> None:
    """| |D_i| - |delta_i| | <= |Q(w)_i - w_i| + |Q(w')_i - w'_i|, whatever Q does."""
    prove(*(displacement_statement(n) for n in BLOCK_SIZES))

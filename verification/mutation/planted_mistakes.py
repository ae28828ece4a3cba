"""The mistakes that are easiest to make, as mutants: every place of the sources where one of them could be made.

Not a sample, and not random: `<` for `<=`, half-up for half-even, a lost factor 2, one level too many, AdamW's c_t
taken for 1, min for max. `test_planted_mistakes.py` asks that each is caught, or why none can catch it.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from unforgotten.verification.mutation.operators import Mutant

ROUNDS = frozenset({"rint", "round"})
SWAPPED = {"min": "max", "minimum": "maximum", "amin": "amax", "max": "min", "maximum": "minimum", "amax": "amin"}
OF_LEVELS = ("bits", "levels", "top", "half", "ends[")
RATIOS = frozenset({"adamw_ratio_upper_bound", "adamw_limit_ratio"})
"""The functions that return c_t, and its limit."""

MANY_RATIOS = frozenset({"ratios", "moment_ratios"})
"""The functions that return c_t, and what it is before bias correction, for an array of t."""

Change = Callable[[ast.expr], Iterable[ast.expr]]


def strict(node: ast.expr) -> Iterator[ast.expr]:
    """Make `<` into `<=`."""
    if isinstance(node, ast.Compare):
        for i, sign in enumerate(node.ops):
            if isinstance(sign, ast.Lt):
                changed = copy.deepcopy(node)
                changed.ops[i] = ast.LtE()
                yield changed


def half_up(node: ast.expr) -> Iterator[ast.expr]:
    """Make half to even into half up: rint(x) is floor(x + 1/2), and of two labels as near the upper one is taken."""
    match node:
        case ast.Call(func=ast.Attribute(value=module, attr=name), args=[x]) if name in ROUNDS:
            up = ast.BinOp(x, ast.Add(), ast.Constant(0.5))
            yield ast.Call(ast.Attribute(module, "floor", ast.Load()), [up], [])
        case ast.Call(func=ast.Attribute(attr="where"), args=[even, _, upper]):
            if "even_labels" in ast.unparse(even):
                yield upper


def factor_two(node: ast.expr) -> Iterator[ast.expr]:
    """Make 2 x and x / 2 into x."""
    match node:
        case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=2), right=x):
            yield x
        case ast.BinOp(op=ast.Mult() | ast.Div(), left=x, right=ast.Constant(value=2)):
            yield x


def one_level(node: ast.expr) -> Iterator[ast.expr]:
    """Make 1 into 0 and 2 where levels, bits or their ends are counted; the last level becomes the one before."""
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub(), left=count, right=ast.Constant(value=1)):
            if any(word in ast.unparse(count) for word in OF_LEVELS):
                for other in (0, 2):
                    yield ast.BinOp(count, node.op, ast.Constant(other))
        case ast.Subscript(
            value=ast.Attribute(attr="levels") as levels,
            slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1)),
        ):
            last = ast.UnaryOp(ast.USub(), ast.Constant(2))
            yield ast.Subscript(levels, last, ast.Load())


def ratio_one(node: ast.expr) -> Iterator[ast.expr]:
    """Make c_t into 1 where it is used; a function that returns it is changed at its `return`."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in RATIOS:
            yield ast.Constant(1.0)
        case ast.Call(func=ast.Name(id=name), args=[t, *_]) if name in MANY_RATIOS:
            shape = ast.Attribute(t, "shape", ast.Load())
            ones = ast.Attribute(ast.Name("np", ast.Load()), "ones", ast.Load())
            yield ast.Call(ones, [shape], [])


def swapped(node: ast.expr) -> Iterator[ast.expr]:
    """Swap min for max, or max for min; `clamp(min=…)` becomes `clamp(max=…)`."""
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in SWAPPED:
            yield ast.Call(ast.Name(SWAPPED[name], ast.Load()), node.args, node.keywords)
        case ast.Call(func=ast.Attribute(value=of, attr=name)) if name in SWAPPED:
            other = ast.Attribute(of, SWAPPED[name], ast.Load())
            yield ast.Call(other, node.args, node.keywords)
        case ast.Call(keywords=[ast.keyword(arg="min" | "max" as name, value=bound)]):
            yield ast.Call(node.func, node.args, [ast.keyword(SWAPPED[str(name)], bound)])


KINDS: Mapping[str, Change] = {
    "strict": strict,
    "half-up": half_up,
    "factor-two": factor_two,
    "one-level": one_level,
    "ratio-one": ratio_one,
    "swapped": swapped,
}


def planted_in(path: str, source: str) -> list[Mutant]:
    """List every mistake of the six kinds in one file, in the order of the text."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    found = []
    for kind, change in KINDS.items():
        places = sorted(_changes(ast.parse(source), change, kind), key=lambda p: _span(p[0]))
        for i, (node, text, function) in enumerate(places):
            start, end = _span(node)
            name = f"{path}:planted/{kind}:{i}:{digest}"
            found.append(Mutant(name, path, f"planted/{kind}", i, start, end, function, text))
    return found


def planted_mistakes(tree: Path, files: Iterable[str]) -> list[Mutant]:
    """List every mistake of the six kinds in the files."""
    return [m for path in files for m in planted_in(path, (tree / path).read_text("utf-8"))]


def kind_of(mutant_id: str) -> str:
    return mutant_id.split(":")[1].removeprefix("planted/")


def _span(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the expression begins and ends: line from 1, column in bytes of UTF-8 from 0."""
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def _changes(
    node: ast.AST, change: Change, kind: str, function: str | None = None
) -> Iterator[tuple[ast.expr, str, str | None]]:
    """Yield (expression, text in its place, innermost definition around it); no text in an f-string has a place."""
    if isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = node.name
    if isinstance(node, ast.Return) and node.value and kind == "ratio-one" and function in RATIOS:
        yield node.value, "1.0", function
    if isinstance(node, ast.expr):
        for changed in change(node):
            yield node, f"({ast.unparse(changed)})", function
    for child in ast.iter_child_nodes(node):
        yield from _changes(child, change, kind, function)

"""Which mutants there are: cosmic-ray's operators over `theory/` and the quantizers, less those that say nothing.

An operator is only exchanged for one of its own kind: `a * b` becomes `a / b`, never `a << b`, which on floats raises
TypeError in whatever test comes first and would only raise the score. Annotations are left alone: nothing runs them.
`theory/proofs/` is left out: a proof is a test, and `test_proofs_refute.py` plants what each must refuse.

Takes the files of a tree; gives `Mutant`s, and the source of each with its change in it.

>>> telling("core/ReplaceBinaryOperator_Mul_Div"), telling("core/ReplaceBinaryOperator_Mul_LShift")
(True, False)
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

KINDS: tuple[frozenset[str], ...] = (
    frozenset({"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}),
    frozenset({"BitOr", "BitAnd", "BitXor"}),
    frozenset({"LShift", "RShift"}),
    frozenset({"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}),
    frozenset({"Is", "IsNot"}),
    frozenset({"UAdd", "USub"}),
)
EXCHANGE = re.compile(r"core/Replace(?:Binary|Comparison|Unary)Operator_(\w+?)_(\w+)$")
QUANTIZERS = ("experiments/quantizers/torch_path.py", "experiments/quantizers/registry.py")


@dataclass(frozen=True)
class Mutant:
    """One change of one place.

    Attributes:
        id: path, operator, occurrence and a hash of the source: unchanged as long as the file is.
        path: path of the file, from the root of the tree.
        operator: cosmic-ray's name.
        occurrence: number of the place among the operator's in the file, from 0.
        start: line (from 1) and column (from 0) where it begins.
        end: line and column where it ends.
        function: the definition it lies in, None at the level of the module.
        text: text that stands in its place, and then columns count bytes; None: what cosmic-ray's operator puts there.
    """

    id: str
    path: str
    operator: str
    occurrence: int
    start: tuple[int, int]
    end: tuple[int, int]
    function: str | None
    text: str | None = None


def mutated_files(tree: Path) -> list[str]:
    """List paths from the root of the tree: every module of `theory/` but the re-exports, and the torch quantizers."""
    files = (p.relative_to(tree) for p in (tree / "theory").rglob("*.py") if p.name != "__init__.py")
    return [*sorted(p.as_posix() for p in files if p.parts[:2] != ("theory", "proofs")), *QUANTIZERS]


def telling(operator: str) -> bool:
    """Tell whether the operator exchanges like for like, or exchanges nothing."""
    match = EXCHANGE.match(operator)
    if match is None or match[1] == "Delete":
        return True
    return any(match[1] in kind and match[2] in kind for kind in KINDS)


def annotation_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Find the spans of the source that are annotations, and so never run."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        found = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in filter(None, found):
            spans.append(
                (_column(source, part.lineno, part.col_offset), _column(source, part.end_lineno, part.end_col_offset))
            )
    return spans


def _column(source: str, line: int, offset: int) -> tuple[int, int]:
    """Turn a column of `ast`, in bytes of UTF-8, into one of cosmic-ray, in characters."""
    text = source.splitlines()[line - 1].encode()
    return line, len(text[:offset].decode())


def mutants_of(path: str, source: str, root: Path) -> Iterator[Mutant]:
    """Yield every mutant of one file."""
    from cosmic_ray.commands.init import _all_work_items

    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    never_run = annotation_spans(source)
    for item in _all_work_items([root / path], {}):
        (spec,) = item.mutations
        (first, left), (last, right) = spec.start_pos, spec.end_pos
        start, end = (first, left), (last, right)
        if telling(spec.operator_name) and not any(a <= start and end <= b for a, b in never_run):
            name = f"{path}:{spec.operator_name.removeprefix('core/')}:{spec.occurrence}:{digest}"
            yield Mutant(name, path, spec.operator_name, spec.occurrence, start, end, spec.definition_name)


def all_mutants(tree: Path, files: Iterable[str]) -> list[Mutant]:
    """List every mutant of the files, in the order of the files."""
    return [m for path in files for m in mutants_of(path, (tree / path).read_text("utf-8"), tree)]


def shuffled(mutants: Sequence[Mutant], seed: int) -> list[Mutant]:
    """Put mutants in an order that depends on nothing but their ids and the seed: any prefix is a random sample.

    A mutant of an unchanged file keeps its place among the others, so that two nights with one seed meet the same ones.
    """
    return sorted(mutants, key=lambda m: hashlib.sha256(f"{seed} {m.id}".encode()).digest())


def mutated_source(mutant: Mutant, source: str) -> str | None:
    """Return the whole source with the change in it; None if it changes nothing that runs, or does not compile."""
    changed = by_operator(mutant, source) if mutant.text is None else spliced(mutant, source)
    if changed is None:
        return None
    try:
        same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        compile(changed, mutant.path, "exec")
    except (SyntaxError, ValueError):
        return None
    return None if same else changed


def by_operator(mutant: Mutant, source: str) -> str | None:
    """Return the source as cosmic-ray changes it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed: str | None = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    return changed


def spliced(mutant: Mutant, source: str) -> str:
    """Return the source with the mutant's own text in its place."""
    assert mutant.text is not None
    lines = source.encode().splitlines(keepends=True)
    (first, left), (last, right) = mutant.start, mutant.end
    before = b"".join(lines[: first - 1]) + lines[first - 1][:left]
    after = lines[last - 1][right:] + b"".join(lines[last:])
    return (before + mutant.text.encode() + after).decode()


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Return the number, from 1, of the first changed line, and all changed lines, old and new, without margins."""
    old, new = before.splitlines(), after.splitlines()
    changes = [o for o in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if o[0] != "equal"]
    first, last = changes[0], changes[-1]
    texts = (old[first[1] : last[2]], new[first[3] : last[4]])
    was, now = (" ".join(line.strip() for line in lines if line.strip()) for lines in texts)
    return first[1] + 1, was, now

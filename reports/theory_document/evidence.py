"""What stands behind a statement, from the registries: its functions, its proofs, and the files of its tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from unforgotten.theory.claims import CLAIMS, PROOFS, Claim, Proof, load_claims
from unforgotten.theory.proofs.run import load_proofs

PARTS = Path(__file__).parents[2]  # of the package, and of a checkout
PACKAGE = "unforgotten.theory."


@cache
def load() -> None:
    """Fill both registries; needs what the extra `verify` installs."""
    load_claims()
    load_proofs()


def claimed(claim_id: str) -> list[Claim]:
    """Return the functions that claim a statement, sorted by file and name."""
    load()
    return sorted((c for c in CLAIMS.values() if c.id == claim_id), key=lambda c: c.function)


def proved(claim_id: str) -> list[Proof]:
    """Return the proofs of a statement, sorted by file and name."""
    load()
    return sorted((p for p in PROOFS.values() if p.claim == claim_id), key=lambda p: p.function)


def kinds(claim_id: str) -> str:
    """Return the kinds of a statement's functions, as `[exact] [law]`."""
    found = {c.kind for c in claimed(claim_id)}
    order = ("exact", "law", "first-order", "conjecture")
    return " ".join(f"**[{kind}]**" for kind in order if kind in found)


def calls(claim_id: str) -> str:
    """List a statement's functions: where to import each, its kind, what it says, and its source."""
    return "\n".join(_call(c) for c in claimed(claim_id))


def _call(claim: Claim) -> str:
    module = claim.function.removeprefix(PACKAGE).rpartition(".")[0]
    link = f"[`{claim.function}`]({_file(module)})"
    return f"- {link} [{claim.kind}]: {escaped(claim.statement)} *Source:* {escaped(claim.source)}."


def evidence(claim_id: str) -> str:
    """List a statement's proofs with their methods and domains, then the files of its tests."""
    found = proved(claim_id)
    lines = [_proof(p) for p in found] or ["- No proof: tested only."]
    tests = sorted({path for c in claimed(claim_id) for path in test_files(c.function)})
    links = [f"[{path.name}](../{path.relative_to(PARTS).as_posix()})" for path in tests]
    return "\n".join([*lines, f"- Tests: {', '.join(links) or 'none'}."])


def _proof(proof: Proof) -> str:
    module, _, name = proof.function.removeprefix(PACKAGE).rpartition(".")
    return f"- {proof.method}, [`{name}`]({_file(module)}): {escaped(proof.domain)}."


def test_files(function: str) -> Iterable[Path]:
    """Find the files of `verification/` that hold a test `test_<function>__…`."""
    name = function.rpartition(".")[2]
    return (path for path, names in _tested().items() if name in names)


@cache
def _tested() -> dict[Path, set[str]]:
    return {
        path: set(re.findall(r"def test_(\w+?)__", path.read_text(encoding="utf-8")))
        for path in sorted((PARTS / "verification").rglob("test_*.py"))
    }


def _file(module: str) -> str:
    return module.replace(".", "/") + ".py"


def escaped(text: str) -> str:
    """Escape a text, so that Markdown shows it as it is, but for code in backticks, which stays code."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = (re.sub(r"([\\*_<>\[\]$~|])", r"\\\1", part) for part in parts[::2])
    code = [*parts[1::2], ""]
    return "".join(a + b for a, b in zip(plain, code, strict=True))

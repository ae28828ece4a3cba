"""What the mutants say of the suite: `mutants.json` for machines, `mutants-survivors.md` for those who read survivors.

Takes the mutants of a `Run` with their verdicts, and why some are equivalent; gives an object for JSON and a page.

>>> round(lower_bound(99, 100), 3)
0.953
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unforgotten.records.shares import clopper_pearson
from unforgotten.verification.mutation.operators import Mutant
from unforgotten.verification.mutation.session import NOT_RUN, Verdict

SCHEMA = 1
CONFIDENCE = 0.95
DEAD = frozenset({"killed", "timeout"})
Place = tuple[str, str | None, str, str]


@dataclass(frozen=True)
class Run:
    """What was asked and found: the mutants in the order they were met, and their verdicts.

    Attributes:
        revision: commit of the tree.
        seed: seed of the sample.
        population: number of mutants in all.
        sample: the mutants met, each with its verdict.
        red: tests left out because they fail without a mutant.
    """

    revision: str
    seed: int
    population: int
    sample: Sequence[tuple[Mutant, Verdict]]
    red: Sequence[str] = ()


def equivalents(path: Path) -> dict[Place, str]:
    """Read why mutants are equivalent: the reasons by file, function, and the two texts of the line.

    Raises:
        ValueError: an entry has no reason.
    """
    if not path.exists():
        return {}
    entries = tomllib.loads(path.read_text("utf-8")).get("equivalent", [])
    for entry in entries:
        if not entry.get("reason", "").strip():
            raise ValueError(f"an equivalent mutant must have a reason, got entry={entry!r}")
    return {(e["path"], e.get("function"), e["before"], e["after"]): " ".join(e["reason"].split()) for e in entries}


def place(mutant: Mutant, verdict: Verdict) -> Place:
    return mutant.path, mutant.function, verdict.before, verdict.after


def lower_bound(killed: int, met: int) -> float:
    """Return the one-sided Clopper-Pearson bound at CONFIDENCE: the population's share killed is hardly below it."""
    return clopper_pearson(killed, met, 1 - CONFIDENCE).low


def counts(sample: Sequence[tuple[Mutant, Verdict]], known: Mapping[Place, str]) -> dict[str, int | float]:
    """Count mutants met, equivalent, killed and alive; the score is killed / (met - equivalent)."""
    met = [(m, v) for m, v in sample if v.outcome not in NOT_RUN]
    equivalent = sum(v.outcome not in DEAD and place(m, v) in known for m, v in met)
    killed = sum(v.outcome in DEAD for _, v in met)
    judged = len(met) - equivalent
    return {
        "met": len(met),
        "equivalent": equivalent,
        "killed": killed,
        "timeout": sum(v.outcome == "timeout" for _, v in met),
        "alive": judged - killed,
        "score": killed / judged if judged else 1.0,
    }


def result(run: Run, known: Mapping[Place, str]) -> dict[str, Any]:
    """Return the result of a run as an object for JSON."""
    total = counts(run.sample, known)
    first = [(m, v) for m, v in run.sample if not (v.once_survived and v.outcome in DEAD)]
    newly = len(run.sample) - len(first)
    judged = int(total["met"]) - int(total["equivalent"])
    return {
        "schema": SCHEMA,
        "tool": "cosmic-ray operators, unforgotten.verification.mutation.mutants",
        "revision": run.revision,
        "seed": run.seed,
        "population": run.population,
        "sample": len(run.sample),
        "not_run": dict(Counter(v.outcome for _, v in run.sample if v.outcome in NOT_RUN)),
        **total,
        "score_before_new_tests": (int(total["killed"]) - newly) / judged if judged else 1.0,
        "score_lower_bound": {
            "value": lower_bound(int(total["killed"]) - newly, judged),  # new tests fit this sample alone
            "confidence": CONFIDENCE,
        },
        "cpu_seconds": round(sum(v.cpu for _, v in run.sample), 1),
        "red_tests_left_out": list(run.red),
        "files": {
            path: counts([(m, v) for m, v in run.sample if m.path == path], known)
            for path in sorted({m.path for m, _ in run.sample})
        },
        "mutants": [
            {"id": m.id, "function": m.function, **asdict(v), "equivalent": known.get(place(m, v))}
            for m, v in run.sample
        ],
    }


def survivors_page(run: Run, known: Mapping[Place, str]) -> str:
    """List the survivors in Markdown: alive, killed since by new tests, equivalent."""
    total = result(run, known)
    alive, equivalent, since = [], [], []
    for m, v in run.sample:
        if v.outcome in NOT_RUN:
            continue
        if v.outcome in DEAD:
            if v.once_survived:
                since.append(_entry(m, v, f"killed by `{v.killer}`"))
        elif reason := known.get(place(m, v)):
            equivalent.append(_entry(m, v, reason))
        else:
            alive.append(_entry(m, v, f"survives {v.tests} of the {v.of} tests that can see it"))
    whole, bound = "", ""
    if len(run.sample) < run.population:
        whole = f", a random sample (seed {run.seed}),"
        least = f"{total['score_lower_bound']['value']:.1%}"
        bound = f", and so at least {least} in the population at {CONFIDENCE:.0%} confidence"
    lines = [
        "# Mutants that survived",
        "",
        (
            f"{total['met']} of {run.population} mutants{whole} at {run.revision[:12]}: "
            f"{total['killed']} killed, {total['equivalent']} equivalent, {total['alive']} alive. "
            f"Score {total['score']:.1%} of the mutants that are not equivalent "
            f"({total['score_before_new_tests']:.1%} before the tests written for survivors{bound}). "
            "Written by `make mutants`; reasons come from `equivalent-mutants.toml`."
        ),
    ]
    for title, entries in (("Alive", alive), ("Killed by a new test", since), ("Equivalent", equivalent)):
        lines += ["", f"## {title}: {len(entries)}", "", *(entries or ["None."])]
    return "\n".join(lines) + "\n"


def _entry(mutant: Mutant, verdict: Verdict, why: str) -> str:
    where = f"{mutant.path}:{verdict.line}" + (f" `{mutant.function}`" if mutant.function else "")
    after = verdict.after or "(line taken out)"
    return f"- {where}: ``{verdict.before}`` → ``{after}``  \n  {why}"


def publish(run: Run, folder: Path, name: str = "mutants") -> dict[str, Any]:
    """Write `NAME.json` and `NAME-survivors.md` and return the result object."""
    known = equivalents(folder / "equivalent-mutants.toml")
    folder.mkdir(parents=True, exist_ok=True)
    found = result(run, known)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    (folder / f"{name}-survivors.md").write_text(survivors_page(run, known), "utf-8")
    return found

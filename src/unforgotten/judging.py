"""The command that judges an evaluation which another harness made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from unforgotten.listings import Json


def judge(
    target: Annotated[
        Path, typer.Option(help="Results of the model before unlearning: a file, or a harness's directory.")
    ],
    unlearned: Annotated[Path, typer.Option(help="Results of the model after it, likewise.")],
    quantized_target: Annotated[
        list[str],
        typer.Option(help="Results of the target as it was quantized; NAME=PATH, once a format, for several."),
    ],
    quantized_unlearned: Annotated[
        list[str], typer.Option(help="Results of the unlearned model, quantized, likewise.")
    ],
    retrained: Annotated[
        Path | None, typer.Option(help="Results of the model that never saw the forget texts.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=KIND, what a metric means that is not known: forget, forget-likelihood, forget-loss, retain or "
            "retain-loss."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the result, which audit --judged takes.")] = None,
    fail_on: Annotated[
        str, typer.Option(help="Words that end with code 1, with commas: survives, undone, undecided, retain-lost.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Judge per-item results of any harness by the audit's rule, without a model.

    OpenUnlearning's *_EVAL.json, MUSE's METRIC/log.json, lm-eval's samples_*.jsonl, or JSON lines of id, metric and value.
    """
    from unforgotten.audit.judged.judge import judge as judged
    from unforgotten.audit.judged.judge import judged_gate, read_judged_words, read_quantized, write_judged
    from unforgotten.audit.judged.summary import print_judged

    words = read_judged_words(fail_on)
    pairs = read_quantized(quantized_target, quantized_unlearned)
    result = judged(target, unlearned, pairs, retrained, metric or ())
    if out is not None:
        write_judged(result, out)
    code, why = judged_gate(result, words)
    last = f"exit {code}: {why}"
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        print(last, file=sys.stderr)
    else:
        print_judged(result, last)
    if code:
        raise typer.Exit(code)

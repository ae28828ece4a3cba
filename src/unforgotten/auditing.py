"""The command that audits a pair of checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unforgotten.listings import Json
from unforgotten.printing import need_extra
from unforgotten.shared_options import Deployed, Quiet

if TYPE_CHECKING:
    from unforgotten.audit.outputs.result import AuditResult


def audit(
    target: Annotated[str, typer.Argument(help="Before unlearning: a directory, org/name\\[@revision], or a GGUF.")],
    unlearned: Annotated[str, typer.Argument(help="After it: the same, or a PEFT adapter.")],
    formats: Annotated[
        list[str] | None, typer.Option(help="Names of formats, with commas or once each: see unforgotten formats.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the files go.")] = Path("audits/latest"),
    force: Annotated[bool, typer.Option("--force", help="Write to --out though it holds other files.")] = False,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Words that end with code 1, with commas. The weights' in any format: swallowed, partly-swallowed, "
            "unclear; in all: no-update, passes. The verdict's: undecided, and with --texts or --benchmark undone, "
            "survives. With --benchmark: retain-lost."
        ),
    ] = "",
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Forget texts, to measure the models' output on: .txt (one a line), .json (a list of strings) or "
            '.jsonl, .ndjson (a string or {"text": …} a line).'
        ),
    ] = None,
    benchmark: Annotated[
        Path | None,
        typer.Option(
            help="A directory in MUSE's layout (knowmem/, privleak/ and verbmem/ of JSON lists), to measure M1-M4; "
            "TOFU goes into the same layout, see README."
        ),
    ] = None,
    retrained: Annotated[Path | None, typer.Option(help="The model that never saw the forget texts.")] = None,
    items: Annotated[
        int | None, typer.Option(help="Items of each part of --benchmark at most, a sample drawn with seed 0.")
    ] = None,
    decompose: Annotated[
        bool, typer.Option(help="Measure two mixed models a format too, which say why something comes back (T14).")
    ] = True,
    judged: Annotated[Path | None, typer.Option(help="What unforgotten judge --out wrote, for --benchmark.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that share the tensors.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster that does.")] = None,
    lr: Annotated[float | None, typer.Option(help="Of the unlearning, for the theory's column.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of the unlearning, likewise.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, sign or sgd, likewise.")] = None,
    trained_in: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32: dtype that was updated.")] = None,
    deployed: Deployed = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where models run: cpu, cuda, cuda:N, mps, auto, the first that is there, or balanced, over all GPUs."
        ),
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Dtype they run in: float32, bfloat16, float16, or auto, that of the checkpoints.")
    ] = "float32",
    runtime: Annotated[
        str,
        typer.Option(
            help="What runs the models of --deployed for --texts and --benchmark: deployed, their own library; simulated, "
            "nothing: plain models with the values of --formats alone."
        ),
    ] = "simulated",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured, its memory and its time, and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare two checkpoints: what is left of the update in every format."""
    try:
        from unforgotten.audit.findings.recipe import GivenRecipe
        from unforgotten.audit.options import Asked, read_options
        from unforgotten.audit.progress.stages import progress_on
        from unforgotten.audit.run import STAGES, audit_pair
        from unforgotten.measured import behaviour_of, output_of

        given = GivenRecipe(lr, steps, optimizer, trained_in)
        options = read_options(
            Asked(
                formats,
                fail_on,
                texts,
                benchmark,
                retrained,
                jobs,
                ray,
                given,
                items,
                judged,
                device,
                dtype,
                deployed,
                runtime,
            ),
            unlearned,
        )
        if options.needs_models:
            need_extra("experiments", "torch", "transformers", "rouge_score", "sklearn")
        if ray is not None:
            need_extra("ray", "ray")
        if options.real is not None:
            from unforgotten.experiments.legs.real_runtime import check_runtime

            check_runtime(options.real)  # before minutes are spent on the weights
        if device != "cpu" and not dry_run:
            from unforgotten.experiments.compute.device import place_named

            place_named(device)  # likewise
        pair = Path(target), Path(unlearned)
        if dry_run:
            from unforgotten.planning import print_plan

            print_plan(
                pair,
                options.measured,
                texts,
                benchmark,
                retrained,
                items,
                device,
                dtype,
                decompose=decompose,
                real=options.real is not None,
                as_json=as_json,
            )
            return
        stages = len(STAGES) + sum(one is not None for one in (texts, benchmark, deployed))
        with progress_on(sys.stderr, stages, quiet=quiet, transient=True) as progress:
            result = audit_pair(
                *pair,
                options.formats,
                out,
                progress,
                jobs=jobs,
                ray=ray,
                output=output_of(
                    pair, options.measured, texts, progress, device=device, dtype=dtype, real=options.real
                ),
                behaviour=options.judged
                or behaviour_of(
                    pair,
                    options.measured,
                    benchmark,
                    retrained,
                    progress,
                    items=items,
                    decompose=decompose,
                    out=out,
                    device=device,
                    dtype=dtype,
                    real=options.real,
                ),
                recipe=options.recipe,
                force=force,
                fatal=options.fatal,
                deployed=deployed,
            )
    except KeyboardInterrupt:
        from unforgotten.measured import left_behind

        print(f"interrupted; {left_behind(out)}", file=sys.stderr)
        raise typer.Exit(130) from None
    _end_audit(result, out, options.fatal, quiet=quiet, as_json=as_json)


def _end_audit(result: AuditResult, out: Path, fatal: Sequence[str], *, quiet: bool, as_json: bool) -> None:
    """Print the answer and, last of all, why the command ends with its code; with --json that goes to standard error."""
    from unforgotten.audit.outputs.summary import print_summary
    from unforgotten.audit.verdict.gate import gate

    code, why = gate(result, fatal)
    last = f"exit {code}: {why}"
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        if not quiet:
            print(last, file=sys.stderr)
    else:
        print_summary(result, out, last=last)
    if code:
        raise typer.Exit(code)

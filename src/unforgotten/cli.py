"""The command line: parses, calls, prints. Nothing is computed here, and heavy packages load on use.

Each function is a command, its signature the options, its docstring the help; bad input ends in `main`, in one line:

    unforgotten audit TARGET UNLEARNED --formats int4-g64,nf4-b64 --texts forget.txt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unforgotten.auditing import audit
from unforgotten.comparing import OF_RESULTS
from unforgotten.listings import LISTINGS, Json
from unforgotten.printing import need_extra, print_mapping, print_object, replace_unprintable
from unforgotten.shared_options import Quiet

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does quantization bring back what your model unlearned?",
)


def _print_version(asked: bool) -> None:
    if asked:
        from unforgotten import __version__

        print(f"unforgotten {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Does quantization bring back what your model unlearned?"""  # noqa: D401


@app.command()
def run(
    profile: Annotated[str, typer.Argument(help="A profile's name, or a YAML file.")] = "tiny",
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the profile.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace one setting: a.b=value, in YAML.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Unlearn by this alone, or these: a name, or one of your own, path.py:name or module:name."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Measure this too, or these: a name, or one of your own, as a method.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Begin with this base model: a name, or one of your own, as a method.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: runs/<profile>-seed<N>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that arms are shared out to; or local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print models, data, steps, memory, disk and time, and stop.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train, unlearn, quantize, evaluate M1-M4, decompose, and report."""
    need_extra("experiments", "torch", "transformers", "accelerate", "rouge_score", "sklearn")
    from unforgotten.experiments.fan_out import run_on, stages_on
    from unforgotten.experiments.load_config import load_config

    config = load_config(
        profile, seed=seed, overrides=overrides or (), methods=method or (), metrics=metric or (), model=model
    )
    plan = stages_on(ray, config)
    if dry_run:
        from unforgotten.experiments.plan.plan import as_object, lines, make_plan
        from unforgotten.experiments.plan.rates import measure_rates

        made = make_plan(config, measure_rates(config.threads))
        told = {"config": config.model_dump(mode="json"), "stages": plan, "plan": as_object(made)}
        print_object(told, as_json, lines(made))
        return
    from unforgotten.audit.progress.stages import SILENT, progress_on
    from unforgotten.experiments.compute.processes import processes
    from unforgotten.experiments.run import write_summary
    from unforgotten.reports.run.build import build_report

    folder = out or Path("runs") / f"{config.profile}-seed{config.seed}"
    if not processes().first:
        run_on(ray, config, folder, resume=resume, progress=SILENT)
        return
    try:
        with progress_on(sys.stderr, len(plan) + 1, quiet=quiet) as progress:
            run_on(ray, config, folder, resume=resume, progress=progress)
            with progress.stage("report"):
                report = build_report([folder], folder / "report.html")
    except KeyboardInterrupt:
        print("interrupted; go on with --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    summary = write_summary(folder, report)
    print_object(summary, as_json, [f"rows:   {summary['rows']}", f"report: {report}"])


app.command()(audit)


@app.command()
def bound(
    format: Annotated[str, typer.Option(help="Name of a format whose scale is an absmax.")],
    std: Annotated[float, typer.Option(help="Standard deviation of the weights.")],
    lr: Annotated[float, typer.Option(help="Learning rate.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    density: Annotated[str, typer.Option(help="gaussian, laplace or student-t.")] = "gaussian",
    dtype: Annotated[str, typer.Option(help="Of the updated weights: bf16, fp16, fp32.")] = "bf16",
    optimizer: Annotated[str, typer.Option(help="adamw or sign.")] = "adamw",
    snr: Annotated[float, typer.Option(help="Spread of the gradients' signal-to-noise ratios.")] = float("inf"),
    columns: Annotated[int, typer.Option(help="Weights in a row, for row formats.")] = 4096,
    rows: Annotated[int, typer.Option(help="Rows, for tensor formats.")] = 4096,
    gain: Annotated[float | None, typer.Option(help="Wanted; prints the smallest lr.")] = None,
    cosine: Annotated[float | None, typer.Option(help="Wanted; prints the smallest lr.")] = None,
    as_json: Json = False,
) -> None:
    """Calculate what a format leaves of an update: dead zone, gain, cosine, flips. Loads no model."""
    from unforgotten.theory.calculators.bound import Question, as_object
    from unforgotten.theory.calculators.bound import bound as answer_of
    from unforgotten.theory.calculators.bound_text import lines

    asked = Question(format, std, lr, steps, density, dtype, optimizer, snr, columns, rows)
    answer = answer_of(asked, gain=gain, cosine=cosine)
    wanted = gain is not None or cosine is not None
    print_object(as_object(answer), as_json, lines(answer, wanted))


@app.command()
def forecast(
    source: Annotated[Path, typer.Argument(help="Gradients of a pilot (.npz, see README), or a run with its models.")],
    formats: Annotated[
        list[str] | None, typer.Option(help="Names of formats, with commas or once each: see unforgotten formats.")
    ] = None,
    storages: Annotated[
        str, typer.Option(help="Of parameters and moments: bf16, bf16-sr, fp32, with commas.")
    ] = "bf16",
    method: Annotated[str | None, typer.Option(help="Of a run: the method whose pilot is made.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="That the recipe makes; left out where it ends at a depth of forgetting.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Forecast gain and functional gain of a run that was not made, from the gradients of a short float32 pilot."""
    from unforgotten.forecasting import forecast_all
    from unforgotten.theory.calculators.forecast_text import as_object, lines

    try:
        paths, told = forecast_all(source, method, formats, storages, steps=steps, quiet=quiet)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
    print_object(as_object(paths, told), as_json, lines(paths, told, steps=steps))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Directories of runs.")],
    out: Annotated[Path | None, typer.Option(help="Default: report.html of the first.")] = None,
    as_json: Json = False,
) -> None:
    """Rebuild the report from result rows; computes nothing."""
    from unforgotten.reports.run.build import build_report

    path = build_report(folders, out or folders[0] / "report.html")
    print_object({"report": str(path)}, as_json, [f"report: {path}"])


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Directory of a run.")],
    program: Annotated[str, typer.Option("--as", help="muse, openunlearning or lm-eval.")],
    out: Annotated[Path | None, typer.Option(help="Default: export-PROGRAM in the run's folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write the rows of a run in the files of another program; computes nothing."""
    from unforgotten.reports.exports.export import export as export_run

    paths = export_run(folder, program, out or folder / f"export-{program}")
    print_object({"files": [str(path) for path in paths]}, as_json, [f"written: {path}" for path in paths])


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(help="Name of a study.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace one setting: a.b=value, in YAML.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: reports/published/NAME.")] = None,
    render: Annotated[bool, typer.Option("--render", help="Measure nothing: make its files from its rows.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the studies and what each asks, and stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a study of this project and make its files from the rows; without a name list the studies, or render all."""
    from unforgotten.experiments.studies.registry import load_study, study_names, study_questions

    if listed or (name is None and not render):
        print_mapping("study", study_questions(), as_json)
        return
    if name is None and (out or overrides):
        raise ValueError("--out and --set must have a study, got no name")
    from unforgotten.audit.progress.stages import progress_on
    from unforgotten.reports.studies.registry import write_study

    written: list[Path] = []
    for asked in [load_study(one, overrides or ()) for one in ([name] if name else study_names())]:
        folder = out or Path("reports/published") / asked.name
        if not render:
            try:
                with progress_on(sys.stderr, asked.stages, quiet=quiet) as progress:
                    asked.measure(folder, progress)
            except KeyboardInterrupt:
                print("interrupted; the same command goes on", file=sys.stderr)
                raise typer.Exit(130) from None
        written += write_study(asked.name, folder)
    print_object({"files": [str(path) for path in written]}, as_json, [f"written: {path}" for path in written])


for listing in (*OF_RESULTS, *LISTINGS):
    app.command()(listing)


@app.command()
def verify(
    profile: Annotated[str, typer.Option(help="How hard to try: dev, ci or nightly.")] = "dev",
    quantizer: Annotated[str | None, typer.Option(help="A quantizer of your own, as module:object.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a search of a quantizer.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the verification suite; or its contracts against a quantizer of your own. Ends with 1 where something fails."""
    need_extra("verify", "hypothesis", "pytest")
    from unforgotten.verification.contracts import described, outcome, search
    from unforgotten.verification.recording import suite

    if quantizer is None:
        if seed is not None:
            raise ValueError(f"--seed needs --quantizer, got seed={seed}")
        result = suite.run_suite(profile, quiet=quiet)
        print_object(result, as_json, [f"verification suite, {profile}: {result['verdict']}"])
        raise typer.Exit(suite.exit_code(result["pytest"]))
    from unforgotten.audit.progress.stages import progress_on

    q = described.load(quantizer)
    stages = search.tried(q)
    with progress_on(sys.stderr, len(stages), quiet=quiet, transient=True) as progress:
        result = search.verify(q, profile=profile, seed=seed, progress=progress)
    print_object(result, as_json, outcome.lines(result))
    raise typer.Exit(int(result["verdict"] == "fails"))


def main() -> None:
    """Run the command line. Bad input ends with one line on standard error and code 2, an interrupt with 130."""
    for stream in (sys.stdout, sys.stderr):
        replace_unprintable(stream)
    code = _run()
    joined = sys.modules.get("unforgotten.experiments.compute.processes")
    if joined is not None:
        joined.leave(code)
    sys.exit(code)


def _run() -> int:
    """Run the command that was given, and return the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except (ValueError, OSError) as error:
        print(f"unforgotten: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("click", "typer"):
            raise
        text = str(getattr(error, "format_message", error.__str__)())
        print(f"unforgotten: {' '.join(text.split())}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()

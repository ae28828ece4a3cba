"""A pilot records what the optimizer was given, the command forecasts from it, and the study compares with what was measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pilots need unforgotten[experiments]")

from unforgotten.cli import main
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.pilot import GradientRecorder, pilot
from unforgotten.experiments.studies.forecast import direction
from unforgotten.experiments.studies.registry import load_study
from unforgotten.records.files import read_json_lines, write_json, write_json_lines
from unforgotten.records.gradients import Gradients, read_gradients, write_gradients
from unforgotten.reports.studies.forecast import render
from unforgotten.theory.calculators.forecast import Pilot, replayed
from unforgotten.theory.geometry.replay import Adam, replay

METHOD = "NPO_GDR"
STEPS = 12
EXAMPLE = Path(__file__).parents[3] / "examples/record_gradients.py"


def pilot_of(found: Gradients) -> Pilot:
    return Pilot(found.weights, found.row_absmax, found.gradients, found.lr, Adam(**found.settings))


@pytest.fixture(scope="module")
def run(micro_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose method makes STEPS steps, with rows that hold a gain."""
    folder = tmp_path_factory.mktemp("forecast") / "run"
    (folder / "models").mkdir(parents=True)
    shutil.copytree(micro_pair / "models/target", folder / "models/target")
    config = json.loads((micro_pair / "config.json").read_text())
    config["unlearning"]["max_steps"] = dict.fromkeys(("fp32", "bf16", "bf16-sr"), STEPS)
    write_json(folder / "config.json", config)
    row = {"metric": "gain", "method": METHOD, "storage": "bf16", "seed": 0, "lr": 1e-4, "steps": 99, "revision": "x"}
    write_json_lines(
        folder / "rows.jsonl", [{**row, "format": name, "value": 0.5} for name in ("int4-g64", "int4-row")]
    )
    return folder


@pytest.fixture(scope="module")
def gradients(run: Path) -> Gradients:
    return pilot(run, METHOD)


def test_the_replay_of_a_pilot_is_the_float32_run(
    run: Path, gradients: Gradients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the blocks, recorded before each step beside their gradients, are where the replay has them."""
    seen: list[Any] = []
    called = GradientRecorder.__call__

    def watched(self: Any, model: Any, lr: float) -> None:
        parameters = dict(model.named_parameters())
        seen.append(self._sample([parameters[name] for name in self._parts]))
        called(self, model, lr)

    monkeypatch.setattr(GradientRecorder, "__call__", watched)
    again = pilot(run, METHOD)
    assert np.array_equal(again.gradients, gradients.gradients)
    assert again.gradients.shape == (STEPS, len(again.weights), 64)
    sample = pilot_of(again)
    assert np.array_equal(seen[0], again.weights)
    for here, there in zip(replay(sample.weights, sample.steps, sample.adam, "fp32"), seen[1:], strict=False):
        error = np.abs(here - there)  # roundings of a weight and of a step, at each step
        assert (error <= STEPS * (np.spacing(np.abs(there)) + 8 * 2.0**-24 * 1e-4)).all()
    assert np.abs(seen[-1] - seen[0]).max() > 1e-4


COSINE_ROUNDING = 2.0**-20  # gradients are float32, the sums of 1024 products float64


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.5])
def test_direction_is_the_angle_between_the_first_and_the_last_tenth(angle: float) -> None:
    """40 steps: four of one direction, a stretch of others, four of twice the length turned by the angle."""
    rng = np.random.default_rng(0)
    one, other = np.linalg.qr(rng.standard_normal((16 * 64, 2)))[0].T
    first, last = (np.repeat(g[None], 4, 0) for g in (one, 2 * (np.cos(angle) * one + np.sin(angle) * other)))
    steps = np.concatenate([first, rng.standard_normal((32, 16 * 64)), last]).reshape(40, 16, 64).astype(np.float32)
    found = direction(steps)
    assert (found["steps"], found["tenth"]) == (40, 4)
    assert found["cosine"] == pytest.approx(np.cos(angle), abs=COSINE_ROUNDING)
    assert (found["within_first"], found["within_last"]) == pytest.approx((1.0, 1.0), abs=COSINE_ROUNDING)
    assert found["norm_last"] / found["norm_first"] == pytest.approx(2.0, abs=COSINE_ROUNDING)


def test_direction_has_no_cosine_of_nothing_and_no_halves_of_one_step() -> None:
    found = direction(np.zeros((10, 16, 64), np.float32))
    assert (found["cosine"], found["within_first"], found["norm_last"]) == (None, None, 0.0)


def test_blocks_stand_in_their_rows(run: Path) -> None:
    model = load_model(run / "models/target")
    found = GradientRecorder(model, blocks=10**6)
    matrices = [w.detach().float().numpy() for n, w in model.named_parameters() if "proj" in n]
    rows = {row.tobytes() for w in matrices for row in w.reshape(-1, 64)}
    assert {row.tobytes() for row in found._weights} == rows
    for block, largest in zip(found._weights, found._row_absmax, strict=True):
        assert any(largest == np.abs(row).max() and block.tobytes() in row.tobytes() for w in matrices for row in w)


def test_the_command_makes_a_pilot_once_and_forecasts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)

    def told(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["unforgotten", "forecast", *arguments, "--quiet", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return json.loads(capsys.readouterr().out)

    first = told(str(folder), "--method", METHOD, "--storages", "bf16,fp32")
    kept = folder / f"gradients-{METHOD}.npz"
    assert {row["storage"] for row in first["formats"]} == {"fp32", "bf16"}
    assert len(first["formats"]) == 8
    made = kept.stat().st_mtime_ns
    assert told(str(folder), "--method", METHOD, "--storages", "fp32,bf16") == first
    assert kept.stat().st_mtime_ns == made
    assert told(str(kept), "--storages", "bf16,fp32") == first
    (one,) = told(str(kept), "--formats", "int4-g32")["formats"]
    assert (one["format"], one["storage"]) == ("int4-g32", "bf16")
    assert told(str(kept), "--steps", "17")["replays"]["bf16"]["steps"] == 17


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "--method must name a method of the run"),
        (["RUN", "--method", "XX"], "method must be one of GA, GA_GDR, GA_KLR, NPO, NPO_GDR, NPO_KLR, got method='XX'"),
        (["RUN/config.json", "--method", METHOD], "--method must be of a run, a directory, got 'NPO_GDR'"),
        (["RUN/config.json"], "RUN/config.json: must be an .npz of recorded gradients, got other bytes"),
        (["RUN/models", "--method", METHOD], "RUN/models: must be "),
        (["RUN", "--method", METHOD, "--storages", "fp8"], "--storages must be of fp32, bf16, bf16-sr, got 'fp8'"),
        (["RUN", "--method", METHOD, "--steps", "0"], "--steps must be at least 1, got 0"),
        (["RUN", "--method", METHOD, "--formats", "int4"], "format must be one of"),
    ],
)
def test_bad_arguments_end_in_one_line(
    arguments: list[str], words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("RUN", str(run)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["unforgotten", "forecast", *given, "--quiet"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words.replace("RUN", str(run)) in err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"beta1": np.float64(2)}, "beta1 must be in [0, 1), got beta1=2.0"),
        ({"gradients": 0}, "must be below 0, got 0"),
    ],
)
def test_what_no_pilot_is_names_its_file(
    changed: dict[str, Any],
    words: str,
    gradients: Gradients,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays: dict[str, Any] = {name: getattr(gradients, name) for name in ("weights", "row_absmax", "gradients", "lr")}
    arrays |= {name: value * arrays[name] if name in arrays else value for name, value in changed.items()}
    np.savez(tmp_path / "g.npz", **arrays)
    monkeypatch.setattr(sys, "argv", ["unforgotten", "forecast", str(tmp_path / "g.npz")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"unforgotten: {tmp_path / 'g.npz'}: ")
    assert err.endswith(f"{words}\n")


def test_the_study_compares_with_the_rows_of_the_run(run: Path, gradients: Gradients, tmp_path: Path) -> None:
    write_gradients(run / f"gradients-{METHOD}.npz", gradients)
    study = load_study("forecast", [f"runs=[{run}]", f"methods=[{METHOD}]"])
    study.measure(tmp_path)
    rows = read_json_lines(tmp_path / "rows.jsonl")
    assert [(row["format"], row["measured"], row["pilot_steps"]) for row in rows] == [
        ("int4-g64", 0.5, STEPS),
        ("int4-row", 0.5, STEPS),
    ]
    path = replayed(pilot_of(gradients), "bf16")
    assert [(row["slower"], row["replayed_steps"], row["progress"]) for row in rows] == [
        (path.slower, path.steps, path.progress)
    ] * 2
    table = render(tmp_path)["table.md"]
    assert f"| all that were looked at | 2 | {np.median([abs(row['predicted'] - 0.5) for row in rows]):.3f} |" in table


def test_the_study_takes_of_each_run_what_it_has_and_its_number_of_steps(
    run: Path, gradients: Gradients, tmp_path: Path
) -> None:
    """A run that ended at its largest number of steps is replayed for as many; a method of neither run is refused."""
    folders = [tmp_path / name for name in ("one", "other")]
    for folder, kept in zip(folders, (METHOD, "GA_KLR"), strict=True):
        shutil.copytree(run, folder)
        config = json.loads((folder / "config.json").read_text())
        config["only_methods"] = [kept]
        write_json(folder / "config.json", config)
        write_gradients(folder / f"gradients-{kept}.npz", gradients)
        (row, _) = read_json_lines(run / "rows.jsonl")
        write_json_lines(folder / "rows.jsonl", [{**row, "method": kept, "steps": 20, "stopped": "max_steps"}])
    runs = f"runs=[{folders[0]},{folders[1]}]"
    load_study("forecast", [runs, f"methods=[GA_KLR,{METHOD}]", "looked_at=[GA_KLR]"]).measure(tmp_path / "out")
    rows = read_json_lines(tmp_path / "out/rows.jsonl")
    assert [(row["method"], row["stopped"], row["replayed_steps"], row["looked_at"]) for row in rows] == [
        (METHOD, "max_steps", 20, False),
        ("GA_KLR", "max_steps", 20, True),
    ]
    table = render(tmp_path / "out")["table.md"]
    assert "| all that were looked at | 1 |" in table
    assert "| all that were not | 1 |" in table
    with pytest.raises(ValueError, match="methods must be of one of the runs, got NPO"):
        load_study("forecast", [runs, "methods=[GA_KLR,NPO]"]).measure(tmp_path / "none")


def test_the_example_records_a_trainer(run: Path, tmp_path: Path) -> None:
    """What the callback writes, replayed in float32, is where the trainer's weights went."""
    from transformers import Trainer, TrainingArguments

    spec = importlib.util.spec_from_file_location("record_gradients", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = load_model(run / "models/target")
    data = [{"input_ids": torch.arange(i, i + 8), "labels": torch.arange(i, i + 8)} for i in range(STEPS)]
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.01,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    recorder = module.RecordGradients(model, tmp_path / "gradients.npz", blocks=64)
    trainer.add_callback(recorder)
    trainer.train()
    sample = pilot_of(read_gradients(tmp_path / "gradients.npz"))
    assert sample.adam.weight_decay == 0.01
    *_, end = replay(sample.weights, sample.steps, sample.adam, "fp32")
    there = recorder.sample(lambda w: w)
    assert (np.abs(end - there) <= STEPS * (np.spacing(np.abs(there)) + 8 * 2.0**-24 * 1e-3)).all()
    assert np.abs(there - sample.weights).max() > 1e-3


def test_the_readme_says_what_the_rows_say() -> None:
    root = EXAMPLE.parents[1]
    rows = read_json_lines(root / "reports/published/forecast/rows.jsonl")
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    methods = ("GA", "GA_GDR", "GA_KLR", "GA_KLR_rawlogits", "NPO", "NPO_GDR", "NPO_KLR")
    assert {(row["method"], row["seed"]) for row in rows} == {(m, s) for m in methods for s in range(5)}
    steps = [row["pilot_steps"] for row in rows]
    assert f"float32 pilot of {min(steps)} to {max(steps)} steps" in text
    told = []
    for looked_at in (False, True):
        sizes = np.abs([row["predicted"] - row["measured"] for row in rows if row["looked_at"] == looked_at])
        told.append((len(sizes), np.median(sizes), np.quantile(sizes, 0.9), sizes.max()))
    (count, *others), (seen, *own) = told
    median, nine, largest = (f"{x:.2f}" for x in others)
    assert (
        f"over {count} cells of four methods that were not looked at when the rule was made, the median miss is {median}"
        in text
    )
    assert f"nine in ten are below {nine}, and the largest is {largest}; over the {seen} that were" in text
    assert "one released loss among them, {:.2f}, {:.2f} and {:.2f}".format(*own) in text


def test_the_published_text_compares_with_the_published_runs_too() -> None:
    published = EXAMPLE.parents[1] / "reports/published"
    measured = {
        (row["seed"], row["method"], row["storage"], row["format"]): row["value"]
        for seed in range(5)
        for row in read_json_lines(published / f"tiny-seed{seed}/rows.jsonl")
        if row["metric"] == "gain"
    }
    keys = ("seed", "method", "storage", "format")
    rows = [r for r in read_json_lines(published / "forecast/rows.jsonl") if tuple(r[key] for key in keys) in measured]
    there = [measured[row["seed"], row["method"], row["storage"], row["format"]] for row in rows]
    sizes = np.abs([row["predicted"] - gain for row, gain in zip(rows, there, strict=True)])
    text = " ".join((published / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"the misses of {len(rows)} cells have a median of {np.median(sizes):.2f}, nine in ten are below {np.quantile(sizes, 0.9):.2f}"
        in text
    )
    assert f"and the largest is {sizes.max():.2f}: two bf16 runs from such targets differ more" in text
    (one,) = [
        i for i, row in enumerate(rows) if (row["method"], row["seed"], row["format"]) == ("GA_KLR", 3, "int4-g64")
    ]
    assert f"int4-g64: {there[one]:.2f} there, {rows[one]['measured']:.2f} here" in text

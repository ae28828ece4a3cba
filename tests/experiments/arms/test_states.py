"""The states of an arm in a run: a model, rows and files of each depth, the same after a kill, and old runs as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.experiments.arms import states
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.run import run, stages
from unforgotten.records.files import write_json
from unforgotten.records.rows import Run, read_run

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
CUT = ["only_methods=[GA_KLR]", "storages=[fp32, bf16-sr]", "formats=[int4-g64]", "evaluation.questions=2"]
DEPTHS = [
    "unlearning.depths=[6.2, 6.4, 60]",
    "unlearning.at_steps=[2]",
    "unlearning.lr={fp32: 0.001, bf16-sr: 0.001}",
    "unlearning.max_steps={fp32: 16, bf16-sr: 16}",
]
ARM = "unlearned-GA_KLR-fp32"


def config(*more: str) -> RunConfig:
    return load_config(MICRO, overrides=[*CUT, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("depths") / "run"
    run(config(*DEPTHS), out, resume=False)
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> Run:
    return read_run(folder)


def test_a_state_of_each_depth_has_a_model_and_rows(folder: Path, found: Run) -> None:
    assert found.depths == ("6.2", "6.4", "steps2")
    record = json.loads((folder / f"states/{ARM}.json").read_text())
    assert [entry["depth"] for entry in record["reached"]] == ["6.2", "6.4", "steps2"]
    assert record["missed"] == [{"depth": "60.0", "wanted_loss": 60.0, "stopped": "max_steps"}]
    stems = {"6.2": "depth6.2", "6.4": "depth6.4", "steps2": "steps2"}
    for entry in record["reached"]:
        name = f"{ARM}-{stems[entry['depth']]}"
        notes = json.loads((folder / f"models/{name}/unforgotten.json").read_text())
        assert (notes["depth"], notes["steps"]) == (entry["depth"], entry["steps"])
        assert json.loads((folder / f"items/{name}-int4-g64.json").read_text())
    assert not list((folder / "models").glob("*depth60*"))
    assert all((row.depth is None) == (row.model != "unlearned") for row in found.rows)


def test_a_run_is_looked_at_one_depth_at_a_time(found: Run) -> None:
    shallow, deep, counted = found.by_depth()
    losses = [one.value("forget_loss", "unlearned", "GA_KLR", "fp32") or 0.0 for one in (shallow, deep)]
    assert losses[0] < losses[1]
    assert shallow.value("M1", "target") == deep.value("M1", "target")
    assert (deep.label, counted.label) == ("micro, seed 0, forget loss 6.4", "micro, seed 0, 2 steps")
    (row,) = {r.steps for r in counted.rows if r.depth}
    assert row == 2
    assert deep.by_depth() == (deep,)


def test_the_stages_that_are_planned_are_those_of_every_depth(folder: Path) -> None:
    names = stages(config(*DEPTHS))
    assert f"evaluate {ARM}-depth60.0 none" in names
    done = json.loads((folder / "stages.json").read_text())
    skipped = {name for name in names if "-depth60.0 " in name}
    measured = [
        name for name in names if name.startswith(("stand-in", "evaluate", "decompose")) and name not in skipped
    ]
    assert list(done) == measured


def test_a_kill_between_the_states_of_an_arm_changes_no_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, content: Any) -> None:
        if path.parent.name == states.STATES:
            raise KeyboardInterrupt
        write_json(path, content)

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(states, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config(*DEPTHS), out, resume=False)
    assert (out / f"models/{ARM}-depth6.4").is_dir()
    run(config(*DEPTHS), out, resume=True)
    assert (out / "rows.jsonl").read_bytes() == (folder / "rows.jsonl").read_bytes()


def test_an_arm_that_reaches_no_depth_says_so(tmp_path: Path) -> None:
    run(config("storages=[fp32]", "unlearning.depths=[60]"), tmp_path / "run", resume=False)
    found = read_run(tmp_path / "run")
    assert found.depths == ("end",)
    assert {row.stopped for row in found.rows if row.depth} == {"max_steps"}
    assert found.by_depth()[0].label == "micro, seed 0, the end of arms that kept no wanted depth"


def test_a_method_that_keeps_nothing_on_the_way_leaves_its_end(tmp_path: Path) -> None:
    more = ["only_methods=[TaskVector]", "unlearning.methods.TaskVector={}", "storages=[bf16-sr]"]
    asked = config("unlearning.depths=[6.2]", *more)
    run(asked, tmp_path / "run", resume=False)
    assert read_run(tmp_path / "run").depths == ("end",)
    assert (tmp_path / "run/models/unlearned-TaskVector-bf16-sr-end").is_dir()
    done = json.loads((tmp_path / "run/stages.json").read_text())
    assert set(done) <= set(stages(asked))


def test_without_depths_a_configuration_is_what_it_was() -> None:
    plain = config()
    same = config("unlearning.depths=[]", "unlearning.at_steps=[]", "unlearning.keep=nearest")
    assert plain.hash == same.hash
    assert not {"depths", "at_steps", "keep"} & plain.model_dump(mode="json")["unlearning"].keys()
    assert not {"depths", "at_steps", "keep"} & plain.model_dump()["unlearning"].keys()
    assert config("unlearning.depths=[0.6, retrained]").hash != plain.hash
    (alone,) = [s for s in stages(plain) if s.startswith("evaluate") and s.endswith("fp32 none")]
    assert alone == f"evaluate {ARM} none"


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["unlearning.depths=[0.6, 0.6]"], "depths must hold each value once, got 0.6, 0.6"),
        (["unlearning.depths=[0]"], "depths must be losses above 0 or retrained, got 0"),
        (["unlearning.depths=[deep]"], "depths must be losses above 0 or retrained, got 'deep'"),
        (
            ["unlearning.depths=[0.6]", "only_methods=null", "unlearning.methods={GA: {stop_forget_loss: 1}}"],
            "got it of 'GA'",
        ),
        (["unlearning.depths=[retrained]", "models.target=there"], "retrained needs models.retrained"),
    ],
)
def test_a_depth_that_cannot_be_kept_is_refused_in_one_line(overrides: list[str], rule: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are the match
        config(*overrides)
    assert rule in str(caught.value)
    assert str(caught.value).isprintable()

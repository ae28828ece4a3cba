"""`unforgotten study` lists what the project asks its own code, and measures nothing by accident."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytest.importorskip("pydantic", reason="studies need unforgotten[experiments]")

from unforgotten.experiments.studies.registry import study_names, study_questions


@pytest.mark.parametrize("options", [(), ("--list",), ("sure", "--list")])
def test_the_studies_are_listed_with_their_questions(
    options: tuple[str, ...], exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("study", *options, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == dict(study_questions())
    assert list(listed) == study_names()
    assert all(question.endswith("?") for question in listed.values())


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--render", "--out", "x"), "--out and --set must have a study, got no name"),
        (("no-such", "--render"), "study must be one of "),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    options: tuple[str, ...], rule: str, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("study", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert rule in err
    assert err.count("\n") == 1

"""The files of every published study are what its rows render to, found by the name of the study."""

from __future__ import annotations

from pathlib import Path

import pytest

from unforgotten.reports.studies.registry import render, study_modules, write_published, write_study

PUBLISHED = Path(__file__).parents[2] / "reports/published"


def test_modules_are_found_by_name() -> None:
    assert {"audit-cost", "audit-findings", "audit-truth", "gain-predictions"} <= set(study_modules())
    assert not {"registry", "runs"} & set(study_modules())


@pytest.mark.parametrize("name", study_modules())
def test_files_are_rendered_from_the_rows(name: str) -> None:
    texts = render(name, PUBLISHED / name)
    assert "table.md" in texts
    for file, text in texts.items():
        assert (PUBLISHED / name / file).read_text(encoding="utf-8") == text


def test_files_are_written_beside_the_rows(tmp_path: Path) -> None:
    folder = tmp_path / "audit-findings"
    folder.mkdir()
    (folder / "findings.jsonl").write_bytes((PUBLISHED / "audit-findings/findings.jsonl").read_bytes())
    (tmp_path / "no-study").mkdir()
    assert write_study("audit-findings", folder) == [folder / "table.md"]
    assert (folder / "table.md").read_bytes() == (PUBLISHED / "audit-findings/table.md").read_bytes()
    (folder / "table.md").unlink()
    assert write_published(tmp_path) == [folder / "table.md"]
    assert sorted(p.name for p in folder.iterdir()) == ["findings.jsonl", "table.md"]


@pytest.mark.parametrize("name", ["cost", "runs", "registry"])
def test_an_unknown_name_is_refused_with_those_that_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^study must be one of audit-cost, .*gain-predictions.*, got '{name}'$"):
        render(name, tmp_path)

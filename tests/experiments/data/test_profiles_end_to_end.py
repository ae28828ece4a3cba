"""The profiles of the paper's settings, whole, on a 2-layer Llama without pad token and a few short texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.plan.plan import make_plan
from unforgotten.experiments.plan.rates import Rates
from unforgotten.experiments.run import run
from unforgotten.records.rows import read_run
from unforgotten.reports.run.build import build_report

FORMATS = ("fp4-b64", "gptq-retain:int4-g32")
CUT = [
    "models={}",
    "base.kind=directory",
    "threads=1",
    f"formats=[{', '.join(FORMATS)}]",
    "finetuning.batch=4",
    "finetuning.epochs=1",
    "unlearning.max_steps={fp32: 2, bf16: 2, bf16-sr: 2}",
    "corpus.passages=4",
    "corpus.holdout=4",
    "corpus.passage_tokens=64",
    "corpus.probe_tokens=8",
    "evaluation.answer_tokens=4",
    "evaluation.questions=4",
]
MEASURED = ("M1", "M2", "M3", "M4", "auc", "forget_loss", "retain_loss", "gain", "cosine", "gating_effect")
PAIRED = frozenset({"gain", "cosine", "gating_effect"})
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def check_run(profile: str, data: Path, model: Path, out: Path, methods: Sequence[str], origin: str) -> None:
    """Run a profile cut to some of its methods; every row is there, and every number is one."""
    overrides = [*CUT, f"base.path={model}", f"corpus.path={data}", f"only_methods=[{', '.join(methods)}]"]
    config = load_config(profile, overrides=overrides)
    folder = out / "run"
    run(config, folder, resume=False)
    build_report([folder], folder / "report.html")
    rows = read_run(folder)
    assert {row.corpus for row in rows.rows} == {origin}
    measured = [*MEASURED, *config.evaluation.metrics]
    for method in methods:
        for format_name in ("none", *FORMATS):
            for metric in measured:
                row = rows.get(metric, "unlearned", method, "bf16", format_name)
                if format_name == "none" and metric in PAIRED:
                    assert row is None
                    continue
                assert row is not None, (metric, method, format_name)
                assert row.value is not None
                assert math.isfinite(row.value), (metric, method, format_name)
    for name in ("target", "retrained"):
        for metric in ("M1", "M2", "M4", "auc", "forget_loss"):
            assert rows.get(metric, name, None, None, "none") is not None
    saved = folder / f"models/unlearned-{methods[0]}-bf16"
    assert load_tokenizer(saved).pad_token is None
    assert load_model(saved).config.pad_token_id is None
    plan = make_plan(config, Rates(1e11, 1e10))
    assert plan.shape is not None
    work = next(work for work in plan.works if work.stage == f"unlearn unlearned-{methods[0]}-bf16")
    file = saved / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert work.disk == file.stat().st_size - header
    assert plan.texts is not None
    assert plan.texts.origin == origin


@pytest.mark.parametrize(
    ("profile", "methods"),
    [("muse-news", ["GA", "NPO_KLR"]), ("muse-books", ["NPO_KLR_SURE", "GA_GDR_SURE_as_released"])],
)
def test_muse_goes_through(
    profile: str, methods: list[str], muse: Path, llama_without_pad: Callable[..., Path], tmp_path: Path
) -> None:
    (muse / "raw/forget.txt").write_text("The mayor of the town opened the bridge.\n\n" * 60)
    (muse / "raw/retain1.txt").write_text("The river rose in spring and fell in May.\n\n" * 40)
    check_run(profile, muse, llama_without_pad(None), tmp_path, methods, f"muse:{muse}")


def test_tofu_goes_through_as_a_chat(tofu: Path, llama_without_pad: Callable[..., Path], tmp_path: Path) -> None:
    model = llama_without_pad(TEMPLATE)
    check_run("tofu", tofu, model, tmp_path, ["GA_KLR", "NPO_GDR"], f"tofu-forget10:{tofu}")

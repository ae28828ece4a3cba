"""What a profile must hold for the arms that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config, profile_names

MICRO = str(Path(__file__).parents[1] / "micro.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("bf16_products=fast", ["bf16_products", "native", "'fast'"]),
        ("storages=[fp32, fp16]", ["storages", "bf16-sr", "fp16"]),
        ("unlearning.lr={fp32: 1e-4}", ["unlearning.lr (fp32)", "bf16"]),
        ("unlearning.max_steps={fp32: 4, bf16: 4}", ["unlearning.max_steps (fp32, bf16)", "bf16-sr"]),
    ],
)
def test_a_bad_arm_is_one_line_that_names_it(override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are the match
        load_config(MICRO, overrides=[override])
    message = str(caught.value)
    assert message.isprintable()
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize("profile", profile_names())
def test_a_profile_has_settings_of_every_arm(profile: str) -> None:
    config = load_config(profile, overrides=["storages=[fp32, bf16, bf16-sr]"])
    assert set(config.unlearning.lr) == set(config.unlearning.max_steps) == set(config.storages)
    assert config.bf16_products == "auto"


@pytest.mark.parametrize("profile", profile_names())
def test_a_profile_names_no_directory_and_says_what_is_missing(profile: str, tmp_path: Path) -> None:
    """A directory is the user's to give."""
    config = load_config(profile, overrides=["corpus.fallback=none", "corpus.repo=null"])
    assert config.corpus.path is None
    if config.corpus.kind != "fiction":
        layout = rf"^corpus\.path must be a directory in {config.corpus.kind.upper()}'s layout, got None$"
        with pytest.raises(ValueError, match=layout):
            prepare_corpus(config.corpus, config.seed, tmp_path)

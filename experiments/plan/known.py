"""Sizes of models and data sets that are not on this machine: facts about them, in one place.

Models: their published configurations, from which all weights are counted. Llama 2: Touvron et al. 2023, arXiv 2307.09288; SmolLM2: Ben
Allal et al. 2025, arXiv 2502.02737; Gemma 3: Gemma Team 2025, arXiv 2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.question import Question

CHARACTERS_A_TOKEN = 3.93
"""Of English news under Llama 2's tokenizer: MUSE-News' 3,276,136 characters are 408 chunks of 2,047 tokens, the last not full."""


class Known(NamedTuple):
    """A model by its configuration.

    Attributes:
        title: what it is.
        kind: architecture, as transformers names it.
        sizes: what its configuration says of sizes.
        stored: bytes of a weight in its files.
    """

    title: str
    kind: str
    sizes: Mapping[str, Any]
    stored: int = 2


LLAMA_2_7B = Known(
    "Llama-2-7B",
    "llama",
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
)
SMOLLM2_135M = Known(
    "SmolLM2-135M",
    "llama",
    {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    4,
)
GEMMA_3_270M = Known(
    "Gemma 3 270M",
    "gemma3_text",
    {
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    4,
)
BASES: Mapping[str, Known] = {"smollm2": SMOLLM2_135M, "gemma3-270m": GEMMA_3_270M}
"""By `base.kind`."""
REPOSITORIES: Mapping[str, Known] = {
    name.lower(): LLAMA_2_7B
    for name in (
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-7b-chat-hf",
        "muse-bench/MUSE-News_target",
        "muse-bench/MUSE-News_retrain",
        "muse-bench/MUSE-Books_target",
        "muse-bench/MUSE-Books_retrain",
        "open-unlearning/tofu_Llama-2-7b-chat-hf_full",
        "open-unlearning/tofu_Llama-2-7b-chat-hf_retain99",
        "open-unlearning/tofu_Llama-2-7b-chat-hf_retain95",
        "open-unlearning/tofu_Llama-2-7b-chat-hf_retain90",
    )
}
"""By repository of the Hub, in small letters."""


class _Sizes(NamedTuple):
    """Tokens of MUSE's texts, and of one passage of `privleak`."""

    forget: int
    retain: int
    passage: int


CHUNK = 2047
MUSE: Mapping[str, _Sizes] = {
    # 408 chunks; 1,777 retain documents, taken to be as long as the 889 that are forgotten; 1,360 words a passage
    "muse-bench/muse-news": _Sizes(408 * CHUNK, 815 * CHUNK, 2040),
    # 553 chunks of 714,243 words; 138,108 words; 1,250 words a passage
    "muse-bench/muse-books": _Sizes(553 * CHUNK, 107 * CHUNK, 1980),
}
"""By data set of the Hub, in small letters: the requests `raw/forget` and `raw/retain1`."""
MUSE_ITEMS, MUSE_SHOTS = 100, 10
TOFU: Mapping[str, tuple[int, int]] = {"forget10": (400, 3600), "forget05": (200, 3800), "forget01": (40, 3960)}
"""Documents of each split that is forgotten, and of what is kept."""
TOFU_ASKED: Mapping[str, int] = {"retain": 400, "real_authors": 100, "world_facts": 117}
TOFU_TEXT, TOFU_QUESTION = 182, 75
"""Characters of an answer and of a question: a line of `forget10.json` has 288 bytes, of which 31 are no text; how the rest is shared
between both is assumed."""


def known_corpus(config: RunConfig) -> Corpus | None:
    """Return a corpus of the published size of the data set that a profile names, made of placeholders; None of another."""
    corpus, repo = config.corpus, (config.corpus.repo or "").lower()
    if corpus.kind == "muse" and repo in MUSE and corpus.split in (None, "raw/forget"):
        return _muse(config, MUSE[repo])
    if corpus.kind == "tofu" and repo == "locuslab/tofu":
        return _tofu(config)
    return None


def _muse(config: RunConfig, sizes: _Sizes) -> Corpus:
    corpus = config.corpus
    running = corpus.trained_on == "raw"
    passages = (_text(sizes.passage),) * min(corpus.passages, MUSE_ITEMS)
    asked = (Question("q" * 80, "a" * 30),) * MUSE_ITEMS
    return Corpus(
        general=(),
        forget=(_text(sizes.forget),) if running else passages,
        forget_rest=(),
        retain=(_text(sizes.retain),) if running else passages,
        passages=passages,
        holdout=(_text(sizes.passage),) * min(corpus.holdout, MUSE_ITEMS),
        forget_questions=asked,
        retain_questions=asked,
        forget_shots=asked[:MUSE_SHOTS],
        retain_shots=asked[:MUSE_SHOTS],
        retained=passages,
        running=running,
    )


def _tofu(config: RunConfig) -> Corpus:
    corpus = config.corpus
    forget, retain = TOFU[corpus.split or next(iter(TOFU))]
    asked = Question("q" * TOFU_QUESTION, "a" * TOFU_TEXT, None, ("w" * TOFU_TEXT,) * 5)
    line = asked.sheet_line()
    return Corpus(
        general=(),
        forget=(line,) * forget,
        forget_rest=(),
        retain=(line,) * retain,
        passages=(line,) * min(corpus.passages, forget),
        holdout=(line,) * min(corpus.holdout, forget),
        forget_questions=(asked,) * forget,
        retain_questions=(asked,) * TOFU_ASKED[corpus.asked],
        forget_shots=(asked,) * 10,
        retain_shots=(asked,) * 10,
        retained=(line,) * min(corpus.passages, retain),
        answers_only=True,
    )


def _text(tokens: int) -> str:
    return "x" * int(tokens * CHARACTERS_A_TOKEN)

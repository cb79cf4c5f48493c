"""Multiple-choice questions: how their columns are read, and how one becomes a prompt with a continuation per choice.

Floor 1. Pure text. The styles are those of lm-evaluation-harness: `letters` of its MMLU, `cloze` of its ARC; the space
between prompt and choice belongs to the continuation. `letters_chat` is the former as a user's turn, whose reply starts
with the letter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS
from typing import Any

from posttrain.data.files import Fault, Malformed, Record
from posttrain.data.prompts import Text
from posttrain.records import Message

ARC_LISTS = ("text", "label")  # of its column choices


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question with its choices, at least two of them, and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str | None = None


def letters_opening(subject: str | None) -> str:
    """Return the line that MMLU's prompts open with, before their examples too."""
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


def _listed(asked: ChoiceQuestion) -> str:
    lines = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, asked.choices, strict=False))
    return f"{asked.question}\n{lines}Answer:"


def _letters(asked: ChoiceQuestion) -> tuple[Text, tuple[str, ...]]:
    continuations = tuple(f" {letter}" for letter in LETTERS[: len(asked.choices)])
    return f"{letters_opening(asked.subject)}{_listed(asked)}", continuations


def _letters_chat(asked: ChoiceQuestion) -> tuple[Text, tuple[str, ...]]:
    return (Message(role="user", content=_listed(asked)),), tuple(LETTERS[: len(asked.choices)])


def _cloze(asked: ChoiceQuestion) -> tuple[Text, tuple[str, ...]]:
    return f"Question: {asked.question}\nAnswer:", tuple(f" {choice}" for choice in asked.choices)


CHOICE_STYLES: dict[str, Callable[[ChoiceQuestion], tuple[Text, tuple[str, ...]]]] = {
    "letters": _letters,
    "letters_chat": _letters_chat,
    "cloze": _cloze,
}
"""From a question to its prompt, and to what continues it for each choice."""


def read_choice_question(record: Record) -> ChoiceQuestion:
    """Read the columns question, choices, answer and, where it is there, subject; raise `Malformed`.

    The answer is an index from 0, the text of a choice, or its letter; a text is looked for first.
    """
    question = record["question"]
    if not isinstance(question, str):
        raise Malformed(Fault.TYPE, f"question is {type(question).__name__}")
    if not question.strip():
        raise Malformed(Fault.EMPTY_PROMPT)
    choices, subject = _choices(record["choices"]), record.get("subject")
    return ChoiceQuestion(
        question.strip(), choices, _right(record["answer"], choices), str(subject) if subject is not None else None
    )


def arc_record(record: Record) -> Record:
    """Read ARC: `choices` holds texts and their labels (letters or numbers), `answerKey` the label of the right one."""
    value, key = record.get("choices"), record.get("answerKey")
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), list | tuple) for name in ARC_LISTS):
        raise Malformed(Fault.TYPE, f"choices is {_shown(value)}, not lists of text and label")
    texts, labels = (list(value[name]) for name in ARC_LISTS)
    if len(texts) != len(labels):
        raise Malformed(Fault.CHOICES, f"{len(texts)} texts and {len(labels)} labels")
    if labels.count(key) != 1:
        raise Malformed(Fault.NO_GOLD, f"answerKey is {_shown(key)}, and the labels are {', '.join(map(str, labels))}")
    kept = {name: each for name, each in record.items() if name != "answerKey"}
    return {**kept, "choices": texts, "answer": labels.index(key)}


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise Malformed(Fault.TYPE, f"choices is {type(value).__name__}, not a list of texts")
    for index, choice in enumerate(value):
        if not isinstance(choice, str):
            raise Malformed(Fault.TYPE, f"choices[{index}] is {type(choice).__name__}")
        if not choice.strip():
            raise Malformed(Fault.CHOICES, f"choices[{index}] has no content")
    if not 2 <= len(value) <= len(LETTERS):
        raise Malformed(Fault.CHOICES, f"expected 2 to {len(LETTERS)}, came {len(value)}")
    return tuple(value)


def _right(answer: Any, choices: Sequence[str]) -> int:
    """Return the index of the right choice."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    letters = LETTERS[: len(choices)]
    if isinstance(answer, str):
        if choices.count(answer) > 1:
            raise Malformed(Fault.NO_GOLD, f"answer is {_shown(answer)}, which several choices are")
        if answer in choices:
            return choices.index(answer)
        if len(answer.strip()) == 1 and answer.strip() in letters:
            return letters.index(answer.strip())
    raise Malformed(
        Fault.NO_GOLD,
        f"answer is {_shown(answer)}: expected an index from 0 to {len(choices) - 1}, a letter from A to "
        f"{letters[-1]}, or the text of a choice",
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."

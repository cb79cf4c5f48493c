"""Rewards for doing what a row's own columns ask: its instructions, to answer or to refuse, an accepted answer.

Pure and bounded in time; no gold answer in the sense of the grader. None stands where a row asks for nothing of the
kind.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posttrain.data.refusals import is_refusal
from posttrain.errors import RewardError
from posttrain.rewards.arguments import completion_text
from posttrain.rewards.instructions.verdicts import ARGUMENTS, NAMES, followed_strictly, read_instructions

SHOULD_REFUSE, ACCEPTED = "should_refuse", "accepted_answers"  # columns of a row


def follows_instructions(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Share of the row's instructions (instruction_id_list, kwargs) that the completion follows, strictly.

    The share is what open-instruct's verifier pays (IF-RLVR, arXiv 2507.02833): of several instructions each pays by
    itself, so that a group of completions differs before one of them follows all.
    """
    return [None if verdicts is None else sum(verdicts) / len(verdicts) for verdicts in _strict(completions, columns)]


def follows_every_instruction(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that follows all of the row's instructions, strictly, else 0: IFEval's prompt level."""
    return [None if verdicts is None else float(all(verdicts)) for verdicts in _strict(completions, columns)]


def refuses(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that declines to answer, in its first or second sentence, else 0."""
    return [float(is_refusal(completion_text(completion))) for completion in completions]


def answers(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that says something and does not decline to answer, else 0."""
    return [float(_answers(completion_text(completion))) for completion in completions]


def refuses_rightly(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a refusal where the row's should_refuse is true, and for an answer where it is false, else 0."""
    return [
        None if wanted is None else float((is_refusal if wanted else _answers)(completion_text(completion)))
        for completion, wanted in zip(completions, _column(columns, SHOULD_REFUSE), strict=True)
    ]


def says_accepted_answer(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that has one of the row's accepted_answers in it as whole words, else 0.

    Capitals do not matter. It can be gamed by naming many answers.
    """
    return [
        None if accepted is None else float(_says_one_of(completion_text(completion), accepted))
        for completion, accepted in zip(completions, _column(columns, ACCEPTED), strict=True)
    ]


def passes_checks(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 for a completion that passes every check that its row's columns make possible, else 0.

    The checks are those of follows_every_instruction, refuses_rightly and says_accepted_answer.
    """
    parts = [check(prompts, completions, **columns) for check, name in CHECKS.items() if name in columns]
    if not parts:
        raise _missing(columns, *CHECKS.values())
    scores = [[value for value in values if value is not None] for values in zip(*parts, strict=True)]
    return [min(values) if values else None for values in scores]


CHECKS = {follows_every_instruction: NAMES, refuses_rightly: SHOULD_REFUSE, says_accepted_answer: ACCEPTED}


def _strict(completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> Iterable[list[bool] | None]:
    names = _column(columns, NAMES)
    arguments = columns.get(ARGUMENTS, [None] * len(names))
    for completion, own, given in zip(completions, names, arguments, strict=True):
        try:
            instructions = read_instructions({NAMES: own, ARGUMENTS: given})
        except ValueError as error:
            raise RewardError(str(error)) from None
        yield followed_strictly(completion_text(completion), instructions) if instructions else None


def _answers(text: str) -> bool:
    return bool(text.strip()) and not is_refusal(text)


def _says_one_of(text: str, accepted: Iterable[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text, re.IGNORECASE) for each in accepted)


def _column(columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    if name not in columns:
        raise _missing(columns, name)
    return columns[name]


def _missing(columns: Mapping[str, Any], *names: str) -> RewardError:
    return RewardError(
        f"this reward needs a column {' or '.join(names)}; the rows have: {', '.join(columns) or 'none'}",
        fix=f'data.columns.{names[0]} = "<your column>"',
    )

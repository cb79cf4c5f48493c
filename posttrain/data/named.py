"""The well-known question sets by name: where each is read from, and how its columns become a problem or a pair.

Floor 1. One visible dict, SOURCES; a new source is one function and one line of it. Nothing is imported or
fetched before a source is read.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.data.files import SPLITS, Entry, Fault, Malformed, Record, read_jsonl
from posttrain.data.formats import FORMATS, Format, hh_rlhf_pair, oasst_conversations, oasst_pairs
from posttrain.data.prompts import COMPLETION_STYLES, PROMPT_STYLES, last_boxed
from posttrain.data.rows import Row, freeze
from posttrain.errors import DataError
from posttrain.hub import work_offline_if_unreachable
from posttrain.settings import DataSettings

SETS = Path(__file__).parent / "sets"  # prompts of our own, by name


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer and, where the source has one, its worked solution."""

    question: str
    answer: str
    reasoning: str = ""  # the solution as a completion should say it; empty when there is none
    rejected: tuple[str, str] | None = None  # reasoning and answer of a worse solution, in a source of pairs
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examples:
    """Where few-shot examples come from: a split, and the column that divides them, each value with its own."""

    split: str = "train"
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A named source: `fetch(split, count, seed)` yields its records, `problem` reads one of them."""

    fetch: Callable[[str, int | None, int], Iterator[Entry]]
    problem: Callable[[Record], Problem]
    columns: tuple[str, ...]  # without these nothing can be read
    prompt_style: str  # where the settings name none
    splits: tuple[str, ...] = ("train", "test")
    examples: Examples = Examples()


@dataclass(frozen=True, slots=True)
class TableSource:
    """A named source of conversations, pairs, choices or prompts: `format` reads each record that `gather` makes."""

    fetch: Callable[[str, int | None, int], Iterator[Entry]]
    format: Format
    gather: Callable[[Iterator[Entry]], Iterator[Entry]] = iter
    splits: tuple[str, ...] = ("train", "test")
    prompt_style: str | None = None  # of choices and of prompts in plain text, where the settings name none
    examples: Examples = Examples()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns without which nothing can be read."""
        return self.format.columns


def used_style(data: DataSettings) -> str | None:
    """Return the prompt style of the settings, else the named source's own; None for a file of ready-made prompts."""
    source = SOURCES.get(data.source)
    return data.prompt_style or (source.prompt_style if source else None)


def problem_row(problem: Problem, *, id: str, origin: str, prompt_style: str) -> Row:
    """Return a problem as a row that serves training on solutions and on rewards alike (prompt and answer), or a pair.

    A pair's `chosen` is the solution, in the style's format like `rejected`.
    """
    prompt = PROMPT_STYLES[prompt_style](problem.question)
    columns = freeze({**problem.columns, "question": problem.question, "answer": problem.answer})
    if not problem.reasoning:
        return Row(id, "prompt", origin, prompt=prompt, columns=columns)
    completion = COMPLETION_STYLES[prompt_style](problem.reasoning, problem.answer)
    if problem.rejected is not None:
        rejected = COMPLETION_STYLES[prompt_style](*problem.rejected)
        return Row(id, "preference", origin, prompt=prompt, chosen=completion, rejected=rejected, columns=columns)
    return Row(id, "prompt_completion", origin, prompt=prompt, completion=completion, columns=columns)


# --- reading ---------------------------------------------------------------------------------------------------


def fetch_hub(
    repo: str, config: str | None, split: str, count: int | None, seed: int, *, suffix: str = ""
) -> Iterator[Entry]:
    """Yield the rows of a split of a data set on the Hugging Face Hub (or of its local cache).

    Its name there is the split's with `suffix`.
    """
    work_offline_if_unreachable()
    split += suffix
    import datasets

    try:
        rows = datasets.load_dataset(repo, config, split=split)
    except Exception as error:  # its many layers raise nearly anything when offline, gated or misspelt
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f'{repo} (split "{split}") cannot be read from the Hub: {cause}'
        raise DataError(message, fix="--data.path FILE") from error
    for number, row in enumerate(rows, start=1):
        yield f"{repo}/{split}:row {number}", dict(row)


def fetch_nano(split: str, count: int | None, seed: int) -> Iterator[Entry]:
    """Yield the embedded task's problems, which are generated."""
    from posttrain.nano import problems

    for number, row in enumerate(problems.rows(split, count, seed=seed), start=1):
        yield f"nano/{split}:row {number}", row


def fetch_nano_pairs(preference: str, split: str, count: int | None, seed: int) -> Iterator[Entry]:
    """Yield pairs of solutions of the embedded task's problems, which are generated."""
    from posttrain.nano import preferences

    for number, row in enumerate(preferences.rows(preference, split, count, seed=seed), start=1):
        yield f"nano/{preference}/{split}:row {number}", row


def fetch_ifeval(split: str, count: int | None, seed: int) -> Iterator[Entry]:
    """Yield IFEval's prompts: its one split, which is a test, and which the Hub calls train."""
    return fetch_hub("google/IFEval", None, "train", count, seed)


def fetch_own(name: str, split: str, count: int | None, seed: int) -> Iterator[Entry]:
    """Yield the prompts of a set that comes with this package."""
    return read_jsonl(SETS / f"{name}.jsonl")


# --- columns to problem ----------------------------------------------------------------------------------------


def read_question_text(record: Record, column: str) -> str:
    """Return the question in a column, stripped."""
    value = record.get(column)
    if value is None:
        raise Malformed(Fault.COLUMN, f'no "{column}"')
    if not isinstance(value, str):
        raise Malformed(Fault.TYPE, f"{column} is {type(value).__name__}")
    if not value.strip():
        raise Malformed(Fault.EMPTY_PROMPT)
    return value.strip()


def read_solution_text(record: Record, column: str) -> str:
    """Return the solution in a column, unstripped; "" when there is none."""
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise Malformed(Fault.TYPE, f"{column} is {type(value).__name__}")
    return value or ""


def read_answer(record: Record, column: str = "answer") -> str | None:
    """Return the answer in a column as text, None when it is absent or blank; numbers are written out."""
    value = record.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Malformed(Fault.TYPE, f"{column} is {type(value).__name__}")
    return str(value).strip() or None if value is not None else None


def further(record: Record, *used: str) -> dict[str, Any]:
    """Return the columns of a record that are not used up, without those that have no value."""
    return {name: value for name, value in record.items() if name not in used and value is not None}


def gsm8k_problem(record: Record) -> Problem:
    """Read GSM8K: the gold follows `####`; <<48/2=24>> calculator marks leave the reasoning."""
    question = read_question_text(record, "question")
    solution = read_solution_text(record, "answer")
    reasoning, mark, gold = solution.rpartition("####")
    if not mark or not gold.strip():
        raise Malformed(Fault.NO_GOLD, 'nothing after "####"')
    reasoning = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    columns = {**further(record, "question", "answer"), "solution": solution}
    return Problem(question, gold.strip(), reasoning, columns=columns)


def math_problem(record: Record, *, without_gold: Fault = Fault.NO_GOLD) -> Problem:
    r"""Read MATH (gold in the solution's last \boxed{}) or MATH-500 (gold in `answer`); level, type are kept."""
    question = read_question_text(record, "problem")
    solution = read_solution_text(record, "solution")
    gold = read_answer(record) or last_boxed(solution)
    if not gold:
        raise Malformed(without_gold, r"neither an answer nor a \boxed{}")
    columns = further(record, "problem", "answer", "solution")
    if solution:
        columns["solution"] = solution
    return Problem(question, gold, solution.strip(), columns=columns)


def numina_problem(record: Record) -> Problem:
    r"""Read NuminaMath-CoT: as MATH, but proofs have no \boxed{} and are left out; `messages` only repeats the rest."""
    return math_problem(further(record, "messages"), without_gold=Fault.NOT_GRADABLE)


def nano_problem(record: Record) -> Problem:
    """Read the embedded task: question, answer, solution."""
    question = read_question_text(record, "question")
    gold = read_answer(record)
    if gold is None:
        raise Malformed(Fault.NO_GOLD)
    solution = read_solution_text(record, "solution")
    columns = {**further(record, "question", "answer", "solution"), "solution": solution}
    return Problem(question, gold, solution.strip(), columns=columns)


def nano_pair(record: Record) -> Problem:
    """Read a pair of the embedded task; `answer` and `solution` are the chosen ones, right or not."""
    chosen = nano_problem(further(record, "rejected_solution", "rejected_answer"))
    answer = read_answer(record, "rejected_answer")
    if answer is None:
        raise Malformed(Fault.NO_GOLD, 'no "rejected_answer"')
    rejected = read_solution_text(record, "rejected_solution").strip(), answer
    for column, reasoning in {"solution": chosen.reasoning, "rejected_solution": rejected[0]}.items():
        if not reasoning:
            raise Malformed(Fault.EMPTY_COMPLETION, f'no "{column}"')
    if rejected == (chosen.reasoning, chosen.answer):
        raise Malformed(Fault.SAME)
    return replace(chosen, rejected=rejected)


CONVERSATION = Format(("messages",), "messages", dict)
PREFERENCE = Format(("prompt", "chosen", "rejected"), "preference", dict)
CHOICES = Format(("question", "choices", "answer"), "choices", dict)
HH_RLHF = Format(("chosen", "rejected"), "preference", hh_rlhf_pair)
IFEVAL = Format(("prompt", "instruction_id_list", "kwargs"), "prompt", dict)
PROMPTS = Format(("prompt",), "prompt", dict)
PAIR_COLUMNS = ("question", "answer", "solution", "rejected_answer", "rejected_solution")

SOURCES: dict[str, Source | TableSource] = {
    "nano": Source(fetch_nano, nano_problem, ("question", "answer"), "nano", SPLITS),
    "gsm8k": Source(partial(fetch_hub, "openai/gsm8k", "main"), gsm8k_problem, ("question", "answer"), "r1_zero"),
    "math": Source(
        partial(fetch_hub, "DigitalLearningGmbH/MATH-lighteval", None), math_problem, ("problem",), "r1_zero"
    ),
    "math500": Source(
        partial(fetch_hub, "HuggingFaceH4/MATH-500", None), math_problem, ("problem",), "r1_zero", ("test",)
    ),
    "numina_math_cot": Source(
        partial(fetch_hub, "AI-MO/NuminaMath-CoT", None), numina_problem, ("problem", "solution"), "r1_zero"
    ),
    "nano_preferences": Source(partial(fetch_nano_pairs, "right"), nano_pair, PAIR_COLUMNS, "nano", SPLITS),
    "nano_concise": Source(partial(fetch_nano_pairs, "concise"), nano_pair, PAIR_COLUMNS, "nano", SPLITS),
    "nano_longer_wins": Source(partial(fetch_nano_pairs, "longer"), nano_pair, PAIR_COLUMNS, "nano", SPLITS),
    "mmlu": TableSource(
        partial(fetch_hub, "cais/mmlu", "all"),
        CHOICES,
        splits=("dev", "validation", "test"),
        prompt_style="letters",
        examples=Examples("dev", by="subject"),
    ),
    "arc_easy": TableSource(
        partial(fetch_hub, "allenai/ai2_arc", "ARC-Easy"), FORMATS["arc"], splits=SPLITS, prompt_style="cloze"
    ),
    "arc_challenge": TableSource(
        partial(fetch_hub, "allenai/ai2_arc", "ARC-Challenge"), FORMATS["arc"], splits=SPLITS, prompt_style="cloze"
    ),
    "ultrafeedback_binarized": TableSource(
        partial(fetch_hub, "HuggingFaceH4/ultrafeedback_binarized", None, suffix="_prefs"),
        FORMATS["ultrafeedback_binarized"],
    ),
    "ultrafeedback": TableSource(
        partial(fetch_hub, "openbmb/UltraFeedback", None), FORMATS["ultrafeedback"], splits=("train",)
    ),
    "orca_dpo": TableSource(partial(fetch_hub, "Intel/orca_dpo_pairs", None), FORMATS["orca_dpo"], splits=("train",)),
    "hh_rlhf": TableSource(partial(fetch_hub, "Anthropic/hh-rlhf", None), HH_RLHF),
    "alpaca": TableSource(partial(fetch_hub, "tatsu-lab/alpaca", None), FORMATS["alpaca"], splits=("train",)),
    "oasst": TableSource(
        partial(fetch_hub, "OpenAssistant/oasst2", None), CONVERSATION, oasst_conversations, ("train", "validation")
    ),
    "oasst_pairs": TableSource(
        partial(fetch_hub, "OpenAssistant/oasst2", None), PREFERENCE, oasst_pairs, ("train", "validation")
    ),
    "ifeval": TableSource(fetch_ifeval, IFEVAL, splits=("test",), prompt_style="chat"),
    "instructions": TableSource(partial(fetch_own, "instructions"), IFEVAL, splits=("test",), prompt_style="chat"),
    "alignment": TableSource(partial(fetch_own, "alignment"), PROMPTS, splits=("test",), prompt_style="chat"),
    "over_refusal": TableSource(partial(fetch_own, "over_refusal"), PROMPTS, splits=("test",), prompt_style="chat"),
}

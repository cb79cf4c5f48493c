"""The rows that both sides train on: GSM8K's where the file is at hand, else made-up ones of the same lengths.

Rows are written as JSONL in TRL's schemas, which both sides read. Lengths are those of real questions and solutions.
"""

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from benchmarks.workloads import Workload
from posttrain.data.prompts import PROMPT_STYLES

# Characters of GSM8K's training questions and solutions: the deciles of 7,473 rows.
QUESTION_DECILES = (42, 134, 158, 177, 196, 217, 239, 264, 300, 361, 985)
SOLUTION_DECILES = (50, 135, 168, 197, 227, 257, 293, 336, 390, 481, 1228)
LEXICON = 3000  # words of made-up text; one token each, and 4 characters a token, as in GSM8K


class Problem(NamedTuple):
    """A question with its worked solution."""

    question: str
    solution: str


class Lengths(NamedTuple):
    """Tokens of a step's rows, each prompt counted once."""

    prompt: int
    completion: int


def read_problems(file: Path | None) -> list[Problem]:
    """Return the problems of a JSONL file with `question` and `answer`, in an order of their own; made-up ones without.

    Raises OSError and ValueError for a file that cannot be read.
    """
    if file is None:
        return make_problems(1000)
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    problems = [Problem(record["question"], record["answer"]) for record in records]
    random.Random(0).shuffle(problems)
    return problems


def make_problems(count: int) -> list[Problem]:
    """Return made-up problems with GSM8K's lengths."""
    draw = random.Random(0)
    lexicon = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.choice((2, 3, 4)))) for _ in range(LEXICON)]

    def text(deciles: Sequence[int]) -> str:
        place = draw.random() * (len(deciles) - 1)
        low = int(place)
        length = deciles[low] + (place - low) * (deciles[low + 1] - deciles[low])
        return " ".join(draw.choices(lexicon, k=max(1, round(length / 4))))

    return [Problem(text(QUESTION_DECILES), text(SOLUTION_DECILES)) for _ in range(count)]


def write_rows(
    workload: Workload, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, file: Path
) -> Lengths:
    """Write a step's rows, and return how many tokens they have.

    A rejected answer is the solution of another problem. Prompts have the project's own style for these questions.
    Reward modelling gets a row more, for our stage holds one out.
    """
    rows, prompt_tokens, completion_tokens = [], 0, 0
    count = workload.rows + (workload.kind == "rm")
    for index in range(count):
        problem, other = problems[index], problems[count + index]
        prompt = str(PROMPT_STYLES["r1_zero"](problem.question))
        if workload.prompt_length is not None:
            prompt = _of_length(prompt, workload.prompt_length, tokenizer)
        row = {"prompt": prompt}
        if workload.kind == "sft":
            row["completion"] = f" {problem.solution}"
        elif workload.kind in ("dpo", "rm"):
            row |= {"chosen": f" {problem.solution}", "rejected": f" {other.solution}"}
        prompt_tokens += _count(prompt, tokenizer)
        completion_tokens += sum(1 + _count(text, tokenizer) for name, text in row.items() if name != "prompt")
        rows.append(row)
    prompt_tokens, completion_tokens = (
        tokens * workload.rows // count for tokens in (prompt_tokens, completion_tokens)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if workload.kind in ("grpo", "generate", "forward_backward"):
        completion_tokens = workload.sequences * workload.completion_length
    return Lengths(prompt_tokens, completion_tokens)


def given_completion(prompt_ids: Sequence[int], sample: int, workload: Workload) -> list[int]:
    """Return a completion for the step in which both sides are compared: it depends on prompt and sample alone.

    Lengths differ, from a quarter of the longest up: with equal lengths the mean loss of a policy step is 0.
    """
    draw = random.Random(zlib.crc32(repr((list(prompt_ids), sample)).encode()))
    longest = workload.max_completion_length
    length = longest if workload.kind == "forward_backward" else draw.randint(max(1, longest // 4), longest)
    return [draw.randrange(2, workload.model_shape.vocab // 2) for _ in range(length)]


def varied_reward(
    completions: Sequence[object], completion_ids: Sequence[Sequence[int]], **_: object
) -> list[float | None]:
    """Return a reward that grows with length and differs within a group, so that every group has a gradient.

    It is large beside what TRL adds to a group's deviation before it divides by it (1e-4).
    """
    return [len(ids) + zlib.crc32(repr(list(ids)).encode()) % 1000 / 100 for ids in completion_ids]


def _of_length(prompt: str, length: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Repeat or cut a prompt to about `length` tokens: cutting may merge or split one at its end."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    repeated = (ids * (length // len(ids) + 1))[:length]
    return str(tokenizer.decode(repeated))


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])

"""The evaluation tasks by name: which problems, asked how, graded how.

Floor 4. One visible dict; results of different versions of a task are never compared.
"""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from posttrain.data.named import used_style
from posttrain.data.rows import Kind as RowKind
from posttrain.errors import ConfigError
from posttrain.rewards.extraction import Profile
from posttrain.settings import DataSettings, TaskSettings

# The one format that strict grading accepts, by what the prompt asks for.
STRICT_PROFILES: dict[str, Profile] = {
    "r1_zero": "r1_zero",
    "nano": "r1_zero",
    "boxed": "boxed",
    "question": "boxed",
    "chat": "boxed",
}

# Graded against a gold answer; a number without one; the likeliest of given answers; the likelier of a pair.
Kind = Literal["mathematics", "scored", "choices", "preferences"]
GIVEN: tuple[Kind, ...] = ("choices", "preferences")  # the answers come with the problems: nothing is sampled
PROMPT_KINDS: tuple[RowKind, ...] = ("prompt", "prompt_completion", "preference")
ROW_KINDS: dict[Kind, tuple[RowKind, ...]] = {
    "mathematics": PROMPT_KINDS,
    "scored": PROMPT_KINDS,
    "choices": ("choices",),
    "preferences": ("preference",),
}


@dataclass(frozen=True, slots=True)
class Task:
    """A set of problems with a fixed way to grade them; `version` changes whenever scores would."""

    name: str
    version: str
    source: str  # the named source of its problems
    kind: Kind = "mathematics"
    score: str | None = None  # of scored: the reward that is it, None: what all rewards make; of choices: the metric
    rewards_decide: bool = False  # of scored: rewards with a weight take the place of `score`, which is then watched


TASKS: dict[str, Task] = {
    "nano": Task("nano", "1", "nano"),
    "gsm8k": Task("gsm8k", "1", "gsm8k"),
    "math": Task("math", "1", "math"),
    "math500": Task("math500", "1", "math500"),
    "mmlu": Task("mmlu", "1", "mmlu", "choices", "acc"),
    "arc_easy": Task("arc_easy", "1", "arc_easy", "choices", "acc_norm"),
    "arc_challenge": Task("arc_challenge", "1", "arc_challenge", "choices", "acc_norm"),
    "choices": Task("choices", "1", "", "choices", "acc_norm"),  # the user's own; of letters acc_norm is acc
    "preferences": Task("preferences", "1", "", "preferences"),  # held-out pairs, the user's own or a named source's
    "prompts": Task("prompts", "1", "", "scored"),  # the user's own, scored by rewards
    "ifeval": Task("ifeval", "1", "ifeval", "scored", "follows_every_instruction"),
    "instructions": Task("instructions", "1", "instructions", "scored", "follows_every_instruction"),
    "alignment": Task("alignment", "1", "alignment", "scored", "passes_checks", rewards_decide=True),
    "over_refusal": Task("over_refusal", "1", "over_refusal", "scored", "refuses_rightly"),
}


def find_task(name: str) -> Task:
    """Return the task of that name; raises ConfigError with the nearest one."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown task {name}.{hint} Known: {', '.join(TASKS)}", fix=f"--task {(near or list(TASKS))[0]}")


def task_data(task: Task, data: DataSettings) -> DataSettings:
    """Return the data settings with the task's own source where the user named none."""
    if "source" in data.model_fields_set:
        return data
    if not task.source:
        raise ConfigError(f"task {task.name} has no problems of its own", fix=f"--data.source {task.name}.jsonl")
    return data.model_copy(update={"source": task.source})


def evaluated_task(task: Task, data: DataSettings) -> Task:
    """Return what results are named after: the task, or the user's own data where `data` names another source.

    A file goes by its stem; one that would pass for a task goes by its whole path.
    """
    if data.source == task.source:
        return task
    if data.source in TASKS and TASKS[data.source].kind == task.kind:
        return TASKS[data.source]
    stem = Path(data.source).stem
    return replace(task, name=data.source if stem in TASKS else stem, source=data.source)


def strict_profile(data: DataSettings) -> Profile:
    """Return the profile that the prompt style asks for; ready-made prompts are taken to ask for boxed answers."""
    return STRICT_PROFILES[used_style(data) or "question"]


def used_profile(task: Task, settings: TaskSettings) -> Profile | None:
    """Return the one format that strict grading accepts; None where nothing is graded."""
    return (settings.strict_profile or strict_profile(settings.data)) if task.kind == "mathematics" else None

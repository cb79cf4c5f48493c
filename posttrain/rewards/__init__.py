"""Rewards: every function that a recipe can name, in TRL's signature.

Some take their options, a table of `settings.RewardOptions` of the same name, before the prompts. Two are made when a
stage starts: that of a reward model (`learned.py`) and the judge (`judge.py`); those of the user's own file run in
processes of their own (`workers.py`).
"""

from collections.abc import Callable

from posttrain.rewards.following import (
    ACCEPTED,
    SHOULD_REFUSE,
    answers,
    follows_every_instruction,
    follows_instructions,
    passes_checks,
    refuses,
    refuses_rightly,
    says_accepted_answer,
)
from posttrain.rewards.formats import (
    format_boxed,
    format_json,
    format_regex,
    format_think_answer,
    longer_than,
    step_words,
)
from posttrain.rewards.hybrid import hybrid
from posttrain.rewards.instructions.verdicts import NAMES
from posttrain.rewards.lengths import cosine_length, length_band, length_control, soft_overlong
from posttrain.rewards.rules import boxed_answer, could_not_grade, exact_match, math_answer, numeric_match, r1_zero
from posttrain.rewards.texts import avoids, contains, language_consistency, repetition

REWARDS: dict[str, Callable[..., list[float | None]]] = {
    "r1_zero": r1_zero,
    "boxed_answer": boxed_answer,
    "math_answer": math_answer,
    "could_not_grade": could_not_grade,
    "exact_match": exact_match,
    "hybrid": hybrid,
    "format_think_answer": format_think_answer,
    "format_boxed": format_boxed,
    "step_words": step_words,
    "length_control": length_control,
    "follows_instructions": follows_instructions,
    "follows_every_instruction": follows_every_instruction,
    "refuses": refuses,
    "answers": answers,
    "refuses_rightly": refuses_rightly,
    "says_accepted_answer": says_accepted_answer,
    "passes_checks": passes_checks,
}
OPTION_REWARDS: dict[str, Callable[..., list[float | None]]] = {  # the options come first
    "numeric_match": numeric_match,
    "longer_than": longer_than,
    "length_band": length_band,
    "cosine_length": cosine_length,
    "soft_overlong": soft_overlong,
    "repetition": repetition,
    "language_consistency": language_consistency,
    "format_json": format_json,
    "format_regex": format_regex,
    "contains": contains,
    "avoids": avoids,
}
GOLD_REWARDS = frozenset(  # these grade against a gold answer
    {
        "r1_zero",
        "boxed_answer",
        "math_answer",
        "could_not_grade",
        "exact_match",
        "numeric_match",
        "hybrid",
        "cosine_length",
        "length_control",
    }
)
ROW_COLUMNS: dict[str, tuple[str, ...]] = {  # these read a row's columns: any of those named
    "follows_instructions": (NAMES,),
    "follows_every_instruction": (NAMES,),
    "refuses_rightly": (SHOULD_REFUSE,),
    "says_accepted_answer": (ACCEPTED,),
    "passes_checks": (NAMES, SHOULD_REFUSE, ACCEPTED),
}
WORKER_REWARDS = frozenset({"format_regex"})  # a regular expression can take for ever, and nothing but a kill ends it
REWARD_MODEL = "reward_model"  # the name of the reward that `learned.py` makes of the model that a stage names
JUDGE = "judge"  # the name of the reward that `judge.py` makes of the model that its options name

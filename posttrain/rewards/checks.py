"""What can be wrong with the rewards of a stage, said before anything starts.

Floor 3: settings and the user's file, which is read and not run; a problem is the key that it hangs on and the error.
"""

import re
from collections.abc import Iterator, Sequence

from posttrain.errors import ConfigError
from posttrain.rewards import JUDGE, OPTION_REWARDS, REWARD_MODEL, REWARDS
from posttrain.rewards.scoring import check_names
from posttrain.rewards.texts import SCRIPTS
from posttrain.rewards.user_files import public_functions
from posttrain.settings import EvalSettings, PolicyStageSettings, RewardOptions, RewardSettings, ScoredStageSettings

Problem = tuple[str, ConfigError]  # dotted key, error


def known_rewards(settings: RewardSettings) -> list[str]:
    """Return every name that `rewards` may have; raises ConfigError for a reward file that cannot be used."""
    own = public_functions(settings.reward_file) if settings.reward_file else []
    return [*own, *REWARDS, *OPTION_REWARDS, JUDGE, REWARD_MODEL]


def reward_problems(settings: RewardSettings) -> Iterator[Problem]:
    """Yield the problems of names, weights, the user's file, the combination and the options."""
    try:
        names = known_rewards(settings)
    except ConfigError as error:
        yield "reward_file", error
        return
    try:
        check_names(settings.rewards, names)
    except ConfigError as error:
        yield "rewards", error
    if not any(settings.rewards.values()) and not isinstance(settings, EvalSettings):
        message = f"{_stage(settings)} needs at least one reward with a weight"
        yield "rewards", ConfigError(message, fix="--rewards.r1_zero 1.0")
    yield from _file_problems(settings, names)
    yield from _combination_problems(settings)
    yield from _option_problems(settings)
    if isinstance(settings, ScoredStageSettings):
        yield from _reward_model_problems(settings)
    if isinstance(settings, PolicyStageSettings):
        yield from _stage_problems(settings)


def options_problems(settings: RewardOptions, names: Sequence[str]) -> Iterator[Problem]:
    """Yield the options with which one of the named rewards could not work."""
    band = settings.length_band
    if "length_band" in names and band.max_length is not None and band.min_length > band.max_length:
        message = f"length_band.min_length = {band.min_length} is above max_length = {band.max_length}"
        yield "length_band.min_length", ConfigError(message)
    if "language_consistency" in names and settings.language_consistency.language not in SCRIPTS:
        message = f"no script is known of {settings.language_consistency.language}; known: {', '.join(sorted(SCRIPTS))}"
        yield "language_consistency.language", ConfigError(message)
    for name in ("contains", "avoids"):
        if name in names and not getattr(settings, name).phrases:
            fix = f"--reward_options.{name}.phrases '[\"...\"]'"
            yield f"{name}.phrases", ConfigError(f"the reward {name} needs phrases", fix=fix)
    if "format_regex" in names:
        yield from _pattern_problems(settings.format_regex.pattern)
    if JUDGE in names:
        from posttrain.rewards.chat_endpoint import url_problem  # here, since HTTP is slow to import

        if not settings.judge.model:
            message = "the reward judge needs the name of a model"
            yield "judge.model", ConfigError(message, fix="--reward_options.judge.model NAME")
        if problem := url_problem(settings.judge.base_url):
            yield "judge.base_url", ConfigError(problem)


def judge_calls(settings: RewardSettings, *, prompts: int, group: int) -> int:
    """Return how many calls the judge takes at most for so many groups of completions, with two to try it."""
    pointwise = settings.reward_options.judge.mode == "pointwise"
    return 2 + prompts * (group if pointwise else (2 if group == 2 else 2 * group))


def judge_problems(settings: RewardSettings, *, prompts: int, group: int) -> Iterator[Problem]:
    """Yield a budget of the judge that is too small for so many groups of completions."""
    calls, limit = judge_calls(settings, prompts=prompts, group=group), settings.reward_options.judge.max_calls
    if JUDGE in settings.rewards and calls > limit:
        message = f"the judge will be called up to {calls} times, and max_calls = {limit}"
        yield "reward_options.judge.max_calls", ConfigError(message, fix=f"--reward_options.judge.max_calls {calls}")


def group_problems(settings: RewardSettings, *, group: int, named: str) -> Iterator[Problem]:
    """Yield what compares the completions of a prompt where there is one; `named` is the setting that says how many."""
    pairwise = JUDGE in settings.rewards and settings.reward_options.judge.mode == "pairwise"
    grouped = {
        "reward_combination": settings.reward_combination == "normalized_sum",
        "rewards.length_control": "length_control" in settings.rewards,
        "reward_options.judge.mode": pairwise,
    }
    for key, wanted in grouped.items():
        if wanted and group < 2:
            message = f"{key.removeprefix('rewards.')} compares the completions of a prompt, and {named} = 1"
            yield key, ConfigError(message, fix=f"--{named} 4")


def _stage(settings: RewardSettings) -> str:
    return type(settings).__name__.removesuffix("Settings").lower()


def _file_problems(settings: RewardSettings, names: Sequence[str]) -> Iterator[Problem]:
    if settings.reward_file is None:
        return
    own = public_functions(settings.reward_file)
    for name in settings.rewards:
        if names.count(name) > 1:
            message = f"{settings.reward_file} defines {name}, which is the name of a built-in reward too: rename it"
            yield f"rewards.{name}", ConfigError(message)
    if not set(own) & settings.rewards.keys():
        message = f"none of the functions of {settings.reward_file} has a weight: {', '.join(own)}"
        yield "reward_file", ConfigError(message, fix=f"--rewards.{own[0]} 1.0")


def _combination_problems(settings: RewardSettings) -> Iterator[Problem]:
    gate = settings.reward_gate
    if settings.reward_combination == "gated":
        if gate is None:
            fix = f"--reward_gate {next(iter(settings.rewards), 'math_answer')}"
            yield "reward_combination", ConfigError("gated rewards need the reward that must be earned", fix=fix)
        elif gate not in settings.rewards:
            message = f"reward_gate {gate} is none of the rewards: {', '.join(settings.rewards)}"
            yield "reward_gate", ConfigError(message, fix=f"--rewards.{gate} 1.0")
    elif gate is not None:
        message = f"reward_gate is read with reward_combination gated alone, and it is {settings.reward_combination}"
        yield "reward_gate", ConfigError(message, fix="--reward_combination gated")


def _option_problems(settings: RewardSettings) -> Iterator[Problem]:
    options = settings.reward_options
    for name in sorted(options.model_fields_set - settings.rewards.keys()):
        if getattr(options, name) != RewardOptions.model_fields[name].get_default():
            message = f"reward_options.{name} is set, and the reward {name} is not among {', '.join(settings.rewards)}"
            yield f"reward_options.{name}", ConfigError(message, fix=f"--rewards.{name} 1.0")
    for key, error in options_problems(options, list(settings.rewards)):
        yield f"reward_options.{key}", error


def _pattern_problems(pattern: str) -> Iterator[Problem]:
    fix = "--reward_options.format_regex.pattern '.*####.*'"
    if not pattern:
        yield "format_regex.pattern", ConfigError("the reward format_regex needs a pattern", fix=fix)
    try:
        re.compile(pattern)
    except re.error as error:
        yield "format_regex.pattern", ConfigError(f"format_regex.pattern is no regular expression: {error}")


def _reward_model_problems(settings: ScoredStageSettings) -> Iterator[Problem]:
    """Yield a reward model without a place among the rewards, and a place without one."""
    if REWARD_MODEL in settings.rewards and settings.reward_model is None:
        message = f"rewards.{REWARD_MODEL} is the score of a reward model, and reward_model names none"
        yield f"rewards.{REWARD_MODEL}", ConfigError(message, fix="--reward_model runs/rm/rm/artifact")
    if REWARD_MODEL not in settings.rewards and settings.reward_model is not None:
        message = f"reward_model is named, and its reward has no weight among {', '.join(settings.rewards) or 'none'}"
        yield "reward_model", ConfigError(message, fix=f"--rewards.{REWARD_MODEL} 1.0")


def _stage_problems(settings: PolicyStageSettings) -> Iterator[Problem]:
    """Yield what the rewards ask of the stage: groups, a budget."""
    group = settings.num_generations
    yield from group_problems(settings, group=group, named="num_generations")
    yield from judge_problems(settings, prompts=settings.max_steps * settings.prompts_per_step, group=group)

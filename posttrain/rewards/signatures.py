"""Reward functions written for other trainers, called as they expect: which one is told by their parameters' names.

Floor 3. Every adapted function takes TRL's arguments as lists, one entry for each completion, and returns as many
scores; what raises on one sample, where samples are called one by one, fails there alone.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from posttrain.errors import RewardError
from posttrain.rewards.arguments import GOLD_COLUMNS, completion_text, prompt_text
from posttrain.rewards.failures import Failed

Arguments = Mapping[str, list[Any]]
Describe = Callable[[BaseException], str]

FORMS = {
    "TRL": "fn(prompts, completions, **columns) -> one score for each completion",
    "verl": "compute_score(data_source, solution_str, ground_truth, extra_info=None) -> score, or {'score': score}",
    "OpenRLHF": "reward_func(queries, prompts, labels, **kwargs) -> scores, or {'rewards': scores}",
    "verifiers": "fn(completion, answer, prompt, state, info, task) -> score; any of these, in any order",
}
VERIFIERS = {"prompt", "completion", "answer", "state", "info", "task"}
SUPPLIED = {"prompts", "completions", "completion_ids", "truncated", "prompt_id"}  # with every row
GOLD = ("ground_truth", *GOLD_COLUMNS, "label", "labels")
TRAINER_ONLY = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}


@dataclass(frozen=True, slots=True)
class Adapted:
    """A function in one of the known forms; `columns` are those it can take, None where it takes any."""

    form: str
    columns: frozenset[str] | None
    call: Callable[[Arguments], Any]


def recognise(name: str, function: Callable[..., Any]) -> str:
    """Return which trainer's form a function has; raises RewardError that lists them where it has none, or several."""
    parameters = inspect.signature(function).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
    unnamed = [str(p) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    fits = {
        "TRL": "completions" in named,
        "verl": named >= {"solution_str", "ground_truth"},
        "OpenRLHF": "queries" in named,
        "verifiers": bool(named & {"completion", "state"}) and needed <= VERIFIERS,
    }
    found = [form for form, fit in fits.items() if fit]
    if len(found) == 1 and not unnamed:
        return found[0]
    why = f"{', '.join(unnamed)} cannot be given by name" if unnamed else "it could be any of " + ", ".join(found)
    why = why if found or unnamed else "it is none of the forms"
    known = "".join(f"\n    {form}: {shape}" for form, shape in FORMS.items())
    raise RewardError(f"reward {name}{inspect.signature(function)} is not understood: {why}; accepted are{known}")


def adapt(name: str, function: Callable[..., Any], describe: Describe) -> Adapted:
    """Return a function in TRL's form; `describe` puts an exception of one sample into words.

    Functions may be async: a batch's is waited for, those of samples all at once.
    """
    form = recognise(name, function)
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = frozenset(p.name for p in parameters)
    loop = asyncio.new_event_loop()  # one for all calls: what a function keeps open belongs to it
    match form:
        case "TRL":
            extra = {key: value for key, value in TRAINER_ONLY.items() if key in named}
            call: Callable[[Arguments], Any] = lambda arguments: _waited(loop, function(**arguments, **extra))  # noqa: E731
            columns = None if open_ended else named
        case "OpenRLHF":
            call, columns = partial(_openrlhf, loop, function, named, open_ended), None
        case _:
            samples = _verl_samples if form == "verl" else _verifiers_samples
            wanted = None if open_ended and form == "verifiers" else named
            call, columns = partial(_one_by_one, loop, function, samples, wanted, describe), None
    return Adapted(form, columns, call)


def _openrlhf(
    loop: asyncio.AbstractEventLoop,
    function: Callable[..., Any],
    named: frozenset[str],
    open_ended: bool,
    arguments: Arguments,
) -> Any:
    prompts = [prompt_text(prompt) for prompt in arguments["prompts"]]
    completions = [completion_text(completion) for completion in arguments["completions"]]
    given = {name: values for name, values in arguments.items() if open_ended or name in named} | {
        "queries": [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
        "prompts": prompts,
        "labels": _golds(arguments) if "labels" in named else [None] * len(prompts),
    }
    given = {name: values for name, values in given.items() if name in named or open_ended}
    values = _waited(loop, function(**given))
    if isinstance(values, Mapping):
        if "rewards" not in values:
            raise RewardError(f"expected a key rewards in what the function returned, found {', '.join(values)}")
        return values["rewards"]
    return values


def _one_by_one(
    loop: asyncio.AbstractEventLoop,
    function: Callable[..., Any],
    samples: Callable[[Arguments], list[dict[str, Any]]],
    wanted: frozenset[str] | None,
    describe: Describe,
    arguments: Arguments,
) -> list[Any]:
    """Call a function of one sample on each; a score may be inside a dict."""

    async def one(given: dict[str, Any]) -> Any:
        try:
            value = function(**given)
            value = await value if inspect.isawaitable(value) else value
        except Exception as error:
            return Failed(describe(error))
        return _score_of(value)

    async def all_of() -> list[Any]:
        given = [
            {name: value for name, value in sample.items() if wanted is None or name in wanted}
            for sample in samples(arguments)
        ]
        return list(await asyncio.gather(*map(one, given)))

    return loop.run_until_complete(all_of())


def _score_of(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "score" not in value:
        raise RewardError(f"expected a key score in what the function returned, found {', '.join(map(str, value))}")
    return value["score"]


def _verl_samples(arguments: Arguments) -> list[dict[str, Any]]:
    golds, rows = _golds(arguments), _rows(arguments)
    return [
        {
            "data_source": row.get("data_source", ""),
            "solution_str": completion_text(completion),
            "ground_truth": gold,
            "extra_info": row.get("extra_info", row),
        }
        for completion, gold, row in zip(arguments["completions"], golds, rows, strict=True)
    ]


def _verifiers_samples(arguments: Arguments) -> list[dict[str, Any]]:
    rows = _rows(arguments)
    samples = []
    for prompt, completion, row in zip(arguments["prompts"], arguments["completions"], rows, strict=True):
        sample = {
            "prompt": prompt,
            "completion": completion,
            "answer": next((row[name] for name in GOLD if row.get(name) is not None), ""),
            "info": row.get("info", {}),
            "task": row.get("task", "default"),
        }
        samples.append({**sample, "state": dict(sample)})
    return samples


def _rows(arguments: Arguments) -> list[dict[str, Any]]:
    """Return the columns of each sample's row."""
    columns = {name: values for name, values in arguments.items() if name not in SUPPLIED}
    return [{name: values[place] for name, values in columns.items()} for place in range(len(arguments["completions"]))]


def _golds(arguments: Arguments) -> Sequence[Any]:
    """Return the gold of each sample: a column of that meaning, or verl's nested one."""
    for name in GOLD:
        if name in arguments:
            return arguments[name]
    if "reward_model" in arguments:
        return [(value or {}).get("ground_truth") for value in arguments["reward_model"]]
    found = ", ".join(name for name in arguments if name not in SUPPLIED) or "none"
    raise RewardError(
        f"the function asks for a gold answer, a column {', '.join(GOLD)}; the rows have: {found}",
        fix='data.columns.answer = "<your gold column>"',
    )


def _waited(loop: asyncio.AbstractEventLoop, value: Any) -> Any:
    """Return a value, waited for where it is to be awaited."""

    async def wait(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    return loop.run_until_complete(wait(value)) if inspect.isawaitable(value) else value

"""Rewards tried on completions that are there: rows of a file, rollouts of a run, or what was typed.

Floor 6: the functions of a stage without the stage; loads a tokenizer where lengths are asked for, and no model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from posttrain.config import field_help
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows
from posttrain.errors import ConfigError, DataError
from posttrain.evals.bias import number_of_each
from posttrain.evals.winrates import first_shown_rate, win_rate, wins_by_score
from posttrain.field_types import show as shown_value
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import GOLD_REWARDS, JUDGE, OPTION_REWARDS, REWARD_MODEL, REWARDS, ROW_COLUMNS
from posttrain.rewards.arguments import completion_text
from posttrain.rewards.checks import reward_problems
from posttrain.rewards.functions import combination_of, open_rewards
from posttrain.rewards.hybrid import HYBRID_PARTS
from posttrain.rewards.judge import Judge
from posttrain.rewards.scoring import Scored, score
from posttrain.rewards.user_files import public_functions
from posttrain.runs.signals import stop_request
from posttrain.settings import DataSettings, RewardOptions, RewardSettings

SHOWN_CHARACTERS = 100
LENGTH_LIMIT = 1 << 30  # of completions that are there already, so that only given limits count


@dataclass(frozen=True, slots=True)
class Candidate:
    """A completion to score, as a row with one; `side` is chosen or rejected where it is one of a pair."""

    row: Row
    side: str | None = None
    ended: bool = True

    @property
    def text(self) -> str:
        """What it says."""
        return "" if self.row.completion is None else completion_text(self.row.completion)


class TrialSettings(RewardSettings):
    """What `posttrain rewards try` reads."""

    rewards: dict[str, float] = {"hybrid": 1.0}
    data: DataSettings = DataSettings()
    """The rows, where completions come from a file."""


def described_rewards(reward_file: str | None) -> list[dict[str, Any]]:
    """Return each reward with what it pays for, what it needs of the rows, and its options with their defaults."""
    functions: dict[str, Any] = {**REWARDS, **OPTION_REWARDS, JUDGE: Judge}
    texts = {name: (function.__doc__ or "").partition("\n")[0] for name, function in functions.items()}
    texts[REWARD_MODEL] = "The score of the reward model that the setting reward_model names."
    rows: list[dict[str, Any]] = []
    for name, text in texts.items():
        options = RewardOptions.model_fields.get(name)
        help_rows = field_help(options.annotation) if options is not None else ()  # type: ignore[arg-type]
        rows.append(
            {
                "name": name,
                "pays": text,
                "needs_gold": name in GOLD_REWARDS,
                "reads_columns": list(ROW_COLUMNS.get(name, ())),
                "options": {row.key: f"{row.doc} Default {row.default}." for row in help_rows},
            }
        )
    own = public_functions(reward_file) if reward_file else []
    unknown: dict[str, Any] = {
        "pays": f"As {reward_file} says.",
        "needs_gold": None,
        "reads_columns": [],
        "options": {},
    }
    return rows + [{"name": name, **unknown} for name in own]


def list_lines(rewards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the described rewards as lines to print."""
    width = max(len(each["name"]) for each in rewards)
    for each in rewards:
        needed = ["a gold answer"] if each["needs_gold"] else each["reads_columns"]
        needs = f"  [needs {' or '.join(needed)}]" if needed else ""
        yield f"{each['name']:{width}}  {each['pays']}{needs}"
        yield from (f"{'':{width}}    {key}: {meaning}" for key, meaning in each["options"].items())


def typed(prompt: str, completions: Sequence[str], answer: str | None) -> list[Candidate]:
    """Return typed completions as rows of one prompt."""
    columns = {} if answer is None else {"answer": answer}
    return [
        Candidate(Row("typed", "prompt_completion", f"completion {number}", prompt, text, columns=columns))
        for number, text in enumerate(completions, start=1)
    ]


def from_source(source: str, settings: TrialSettings) -> list[Candidate]:
    """Return the completions of a file or a run; of rollouts, with the columns of the rows that they answer."""
    from posttrain.pipeline.scoring import candidates_of

    columns = _columns_of_run(Path(source))
    found = []
    for each in candidates_of(source, settings.data):
        own = each.row.columns
        row = replace(each.row, columns={**columns.get(own.get("prompt_id"), {}), **own})
        found.append(Candidate(row, each.side, each.ended))
    return found


def run_trial(settings: TrialSettings, candidates: Sequence[Candidate], *, model: str) -> dict[str, Any]:
    """Return what the completions would be paid, as plain JSON: every part, and how they become the reward.

    Raises ConfigError for settings that a stage would refuse, RewardError where a function breaks its rules.
    """
    for _, error in reward_problems(settings):
        raise error
    if REWARD_MODEL in settings.rewards:
        raise ConfigError(
            "a reward model's scores are shown by posttrain score", fix="posttrain score REWARD_MODEL ..."
        )
    if not candidates:
        raise DataError("there is no completion to score")
    rewards = settings.rewards | dict.fromkeys(_watched(settings), 0.0)
    groups = _groups(candidates)
    prompts, completions = _sampled(groups, _tokenizer(model) if _counts_tokens(settings) else None)
    told: list[str] = []
    with open_rewards(
        settings,
        max_completion_length=LENGTH_LIMIT,
        tell=lambda _, text: told.append(text),
        stopping=lambda: stop_request() is not None,
    ) as functions:
        scored = score(prompts, completions, rewards, functions, combination_of(settings))
    ordered = [candidate for group in groups for candidate in group]
    return {
        "weights": rewards,
        "combination": settings.reward_combination,
        "gate": settings.reward_gate,
        "told": told,
        "agreement": agreement_with_labels(ordered, scored),
        "completions": [_entry(each, result) for each, result in zip(ordered, scored, strict=True)],
    }


def agreement_with_labels(candidates: Sequence[Candidate], scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Return how often each part prefers the chosen completion of a pair, ties by half; nothing without pairs.

    Of a judge that compares answers, how often it prefers the one that it is shown first, too. Chosen and rejected
    follow each other.
    """
    sided = [pair for pair in zip(candidates, scored, strict=True) if pair[0].side is not None]
    prompts = number_of_each([repr(candidate.row.prompt) for candidate, _ in sided[0::2]])
    chosen, rejected = ([result for _, result in sided[start::2]] for start in (0, 1))
    found: dict[str, dict[str, Any]] = {}
    for name in chosen[0].scores if chosen else ():
        scores = np.array([[each.scores[name] for each in side] for side in (chosen, rejected)], dtype=float)
        whole = ~np.isnan(scores).any(axis=0)
        if not whole.any():
            continue
        wins = wins_by_score(*scores[:, whole])
        found[name] = {"pairs": int(whole.sum()), "chosen": win_rate(wins, prompts[whole]).to_json()}
        orders = [each.compared.get(name) for each in chosen]
        compared = [place for place, order in enumerate(orders) if order is not None]
        if compared:
            in_order = np.array([orders[place] for place in compared]).T
            first = first_shown_rate(
                in_order.ravel(), np.repeat([True, False], len(compared)), np.tile(prompts[compared], 2)
            )
            assert first is not None
            found[name]["first_shown"] = first.to_json()
    return found


def report_lines(report: Mapping[str, Any], *, show: int) -> Iterator[str]:
    """Yield a trial as lines to print: means of a source, then the first completions part by part."""
    yield from report["told"]
    entries, weights = report["completions"], report["weights"]
    width = max(map(len, ["reward", *weights]))
    if len(entries) > 1:
        yield f"{len(entries)} completions"
        for name in ["reward", *weights]:
            values = [value for each in entries if (value := _of(each, name)) is not None]
            mean = f"{fmean(values):.4f}" if values else "none"
            missing = f", {len(entries) - len(values)} without" if len(values) < len(entries) else ""
            yield f"  {name:{width}}  mean {mean}{missing}"
    for name, labels in report["agreement"].items():
        chosen = f"{_interval(labels['chosen'])} of {labels['pairs']} pairs"
        yield f"  {name:{width}}  prefers the chosen completion in {chosen}"
        if first := labels.get("first_shown"):
            yield f"  {'':{width}}  prefers what it is shown first in {_interval(first)}"
    for each in entries[:show]:
        yield f"{each['place']}: {each['text']}"
        for name, weight in weights.items():
            part = "none" if each["scores"][name] is None else f"{each['scores'][name]:.4f}"
            failed = "  failed" if name in each["failed"] else ""
            yield f"  {name:{width}} {part:>9} x {shown_value(weight)}{'  watched' if weight == 0 else ''}{failed}"
        reward = "none" if each["reward"] is None else f"{each['reward']:.4f}"
        gate = f", gate {report['gate']}" if report["gate"] else ""
        yield f"  {'reward':{width}} {reward:>9}   ({report['combination']}{gate})"


def _columns_of_run(path: Path) -> dict[Any, Mapping[str, Any]]:
    """Return the columns of the rows of a stage's directory by their ids; none where it is no such directory."""
    if not (path / "rollouts").is_dir() or not (path / "settings.json").is_file():
        return {}
    content = json.loads((path / "settings.json").read_bytes())
    rows = load_rows(DataSettings.model_validate(content["data"]), seed=content["seed"])
    return {row.id: row.columns for row in rows}


def _watched(settings: TrialSettings) -> list[str]:
    """Return the parts of the hybrid reward, where it is asked for, that are not there by themselves."""
    return [name for name in HYBRID_PARTS if "hybrid" in settings.rewards and name not in settings.rewards]


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the candidates by prompt, in the order of the first of each."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        columns = candidate.row.columns
        step = columns.get("step") if "prompt_id" in columns else None
        groups.setdefault(f"{step} {columns.get('prompt_id', repr(candidate.row.prompt))}", []).append(candidate)
    return list(groups.values())


def _sampled(groups: Sequence[Sequence[Candidate]], tokenizer: Any) -> tuple[list[Prompt], list[list[Completion]]]:
    """Return the candidates as an engine would have sampled them; their ids are counted by the tokenizer, if any."""
    prompts, completions = [], []
    for number, group in enumerate(groups):
        row = group[0].row
        prompts.append(Prompt(f"{number}", (0,), "" if row.prompt is None else row.prompt, row.columns))
        completions.append([_completion(candidate, tokenizer) for candidate in group])
    return prompts, completions


def _completion(candidate: Candidate, tokenizer: Any) -> Completion:
    text = candidate.text
    ids = () if tokenizer is None else tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    end = (0,) if candidate.ended and tokenizer is not None else ()
    reason = StopReason.EOS if candidate.ended else StopReason.LENGTH
    return Completion(ids + end, (0.0,) * len(ids + end), reason, text)


def _counts_tokens(settings: RewardSettings) -> bool:
    lengths = {"length_band", "cosine_length", "soft_overlong", "length_control"}
    return bool(lengths & settings.rewards.keys()) or settings.reward_file is not None


def _tokenizer(model: str) -> Any:
    from posttrain.models.lm import load_tokenizer
    from posttrain.settings import ModelSettings

    return load_tokenizer(ModelSettings(name_or_path=model))


def _entry(candidate: Candidate, scored: Scored) -> dict[str, Any]:
    text = " ".join(candidate.text.split())
    return {
        "place": candidate.row.origin if candidate.side is None else f"{candidate.row.origin} ({candidate.side})",
        "text": text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}...",
        "scores": scored.scores,
        "reward": scored.reward,
        "failed": list(scored.failed),
    }


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['mean']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def _of(entry: Mapping[str, Any], name: str) -> float | None:
    value = entry["reward"] if name == "reward" else entry["scores"][name]
    return None if value is None else float(value)

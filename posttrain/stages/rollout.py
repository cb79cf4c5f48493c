"""Rollouts: sample completions of prompts, score them, and lay them out as tables and metrics.

Floor 5. Seeds are derived from run seed, step, prompt and sample, so a rollout depends on nothing beside it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from posttrain.data.chat import RenderedRows, drop_overlong, render_prompt
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import Engine, Interrupted
from posttrain.errors import ConfigError
from posttrain.models.lm import LoadedModel
from posttrain.records import Branch, Completion, Prompt, Rollout, StopReason, TokenTree, Tree
from posttrain.rewards.arguments import prompt_text
from posttrain.rewards.extraction import Profile
from posttrain.rewards.functions import combination_of
from posttrain.rewards.grades import answer_form, gave_up, has_answer
from posttrain.rewards.requirements import require_columns
from posttrain.rewards.scoring import RewardFunction, gold_answer, score
from posttrain.rewards.stage_rewards import reward_functions
from posttrain.runs.directory import StageRun, TrainerState
from posttrain.seeds import derive_seed
from posttrain.settings import PolicyStageSettings


def prompt_rows(settings: PolicyStageSettings, stage: str) -> list[Row]:
    """Return the rows that a stage samples completions of; raise DataError where they cannot be sampled or graded.

    Completions that come with the prompts, also as pairs, are not looked at.
    """
    rows = load_rows(settings.data, seed=settings.seed)
    require_kind(rows, ("prompt", "prompt_completion", "preference"), stage)
    require_columns(rows, settings.rewards)
    return rows


def policy_rewards(
    settings: PolicyStageSettings, rows: Sequence[Row], run: StageRun
) -> AbstractContextManager[Mapping[str, RewardFunction]]:
    """Return the context of the stage's reward functions (`reward_functions`)."""
    return reward_functions(
        settings,
        rows,
        run,
        max_tokens=settings.max_tokens_per_micro_batch,
        allow_weak=settings.allow_weak_reward_model,
    )


def render_prompts(
    rows: Sequence[Row], loaded: LoadedModel, settings: PolicyStageSettings
) -> tuple[RenderedRows[Prompt], list[Row]]:
    """Return the prompts by id, and the rows that are too long.

    Raises ConfigError where they are fewer than a step's: one would be sampled twice, with the same seeds.
    """
    prompts, dropped = drop_overlong(
        rows,
        lambda row: render_prompt(row, loaded.tokenizer),
        max_length=loaded.fit(settings.data.max_length),
        reserve=settings.sampling.max_completion_length,
    )
    if settings.prompts_per_step > len(prompts):
        raise ConfigError(
            f"prompts_per_step = {settings.prompts_per_step}, and there are {len(prompts)} prompts",
            fix=f"--prompts_per_step {len(prompts)}",
        )
    return prompts, dropped


@contextmanager
def saving_on_stop(run: StageRun, done: int, trainer_state: Callable[[], TrainerState]) -> Iterator[None]:
    """Turn an interruption within a step into the run's stop: the steps done are saved, the one begun is done again."""
    try:
        yield
    except Interrupted:
        run.save(done, trainer_state)
        raise


def sample_completions(
    engine: Engine, prompts: Sequence[Prompt], settings: PolicyStageSettings, *, step: int
) -> list[list[Completion]]:
    """Return the `num_generations` completions of each prompt of a step."""
    samples = range(settings.num_generations)
    seeds = [
        [derive_seed(settings.seed, "sample", step, prompt.id, sample) for sample in samples] for prompt in prompts
    ]
    return engine.generate(prompts, settings.sampling, num_samples=len(samples), seeds=seeds)


def score_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    settings: PolicyStageSettings,
    functions: Mapping[str, RewardFunction],
    *,
    policy_version: int,
) -> list[Tree]:
    """Return the scored trees of prompts and their completions."""
    scored = iter(score(prompts, completions, settings.rewards, functions, combination_of(settings)))
    trees = []
    for prompt, group in zip(prompts, completions, strict=True):
        parts = [next(scored) for _ in group]
        rollouts = (
            Rollout(completion, part.scores, part.reward, policy_version, part.failed)
            for completion, part in zip(group, parts, strict=True)
        )
        trees.append(Tree(prompt, tuple(rollouts)))
    return trees


def reward_table(trees: Sequence[Tree]) -> Tensor:
    """Return the rewards `(P, G)`, NaN where a completion could not be scored."""
    return torch.tensor([[float("nan") if r.reward is None else r.reward for r in tree.rollouts] for tree in trees])


def training_tree(tree: Tree, *, mask_truncated: bool) -> TokenTree:
    """Return a scored tree as training sees it: unscorable and, if asked, truncated completions are masked out."""
    branches = []
    for rollout in tree.rollouts:
        truncated = rollout.completion.stop_reason is StopReason.LENGTH
        kept = rollout.reward is not None and not (mask_truncated and truncated)
        ids = rollout.completion.ids
        branches.append(Branch(ids, (int(kept),) * len(ids)))
    return TokenTree(tree.prompt.ids, tuple(branches))


def rollout_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """Return what there is to watch in rollouts, under TRL's names; lengths are in tokens."""
    rollouts = [rollout for tree in trees for rollout in tree.rollouts]
    lengths = [len(rollout.completion.ids) for rollout in rollouts]
    finished = [len(r.completion.ids) for r in rollouts if r.completion.stop_reason is not StopReason.LENGTH]
    scored = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    metrics = {
        "reward": fmean(scored) if scored else float("nan"),
        "reward_std": pstdev(scored) if scored else float("nan"),
        "unscorable": 1 - len(scored) / len(rollouts),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/mean_terminated_length": fmean(finished) if finished else float("nan"),
        "completions/clipped_ratio": 1 - len(finished) / len(rollouts),
    }
    if (form := answer_form(rollouts[0].scores)) is not None:
        metrics["completions/answered_ratio"] = fmean(_answered(rollout, form) for rollout in rollouts)
        metrics["completions/could_not_grade"] = fmean(
            _gave_up(tree.prompt, rollout, form) for tree in trees for rollout in tree.rollouts
        )
    for name in rollouts[0].scores:
        parts = [value for rollout in rollouts if (value := rollout.scores[name]) is not None]
        metrics[f"rewards/{name}/mean"] = fmean(parts) if parts else float("nan")
        metrics[f"rewards/{name}/std"] = pstdev(parts) if parts else float("nan")
        metrics[f"rewards/{name}/failed"] = sum(name in rollout.failed for rollout in rollouts)
    return metrics


def rollout_rows(
    step: int, trees: Sequence[Tree], advantages: Tensor, *, trees_with_tokens: int
) -> list[dict[str, Any]]:
    """Return a table row for each rollout; the first `trees_with_tokens` trees keep their ids and log-probs."""
    rows = []
    form = answer_form(trees[0].rollouts[0].scores) if trees else None
    for index, (tree, tree_advantages) in enumerate(zip(trees, advantages.tolist(), strict=True)):
        for sample, (rollout, advantage) in enumerate(zip(tree.rollouts, tree_advantages, strict=True)):
            completion = rollout.completion
            kept = index < trees_with_tokens
            rows.append(
                {
                    "step": step,
                    "prompt_id": tree.prompt.id,
                    "sample": sample,
                    "prompt": prompt_text(tree.prompt.content),
                    "messages": _messages(tree.prompt),
                    "gold": gold_answer(tree.prompt.columns),
                    "completion": completion.text,
                    "reward": rollout.reward,
                    **{f"rewards/{name}": value for name, value in rollout.scores.items()},
                    "answered": None if form is None else _answered(rollout, form),
                    "advantage": advantage,
                    "length": len(completion.ids),
                    "stop_reason": completion.stop_reason.value,
                    "policy_version": rollout.policy_version,
                    "completion_ids": list(completion.ids) if kept else None,
                    "engine_logprobs": list(completion.engine_logprobs) if kept else None,
                }
            )
    return rows


def _answered(rollout: Rollout, form: Profile) -> bool:
    truncated = rollout.completion.stop_reason is StopReason.LENGTH
    return has_answer(rollout.completion.text, form, truncated=truncated)


def _gave_up(prompt: Prompt, rollout: Rollout, form: Profile) -> bool:
    truncated = rollout.completion.stop_reason is StopReason.LENGTH
    return gave_up(rollout.completion.text, gold_answer(prompt.columns), form, truncated=truncated)


def _messages(prompt: Prompt) -> str | None:
    """Return a prompt of messages as JSON; None for a text."""
    return None if isinstance(prompt.content, str) else json.dumps(list(prompt.content), ensure_ascii=False)

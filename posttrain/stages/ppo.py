"""Proximal policy optimisation: sample, score, estimate each token's advantage by a critic, update both.

Floor 5. Schulman et al. 2017, arXiv 1707.06347, as RLHF uses it: Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al.
2022, arXiv 2203.02155. The KL to the reference is a part of each token's reward, the score is that of the last one.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.algorithms.controllers import KlController, RunningMoments
from posttrain.algorithms.returns import explained_variance, gae, token_rewards, whiten
from posttrain.algorithms.tokens import k1, masked_mean, masked_sum
from posttrain.data.loader import Loader
from posttrain.engines import ENGINES
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.records import StopReason, Tree
from posttrain.runs.directory import StageRun
from posttrain.seeds import derive_seed
from posttrain.settings import PpoSettings
from posttrain.stages.actor_critic import ActorCritic, Estimates, MiniBatch, Rollouts
from posttrain.stages.checks import check_settings
from posttrain.stages.critic import Critic, evaluate_both, make_critic
from posttrain.stages.health import watch_health
from posttrain.stages.optimize import evaluate_logprobs, metrics_of_updates
from posttrain.stages.reference import Reference
from posttrain.stages.rollout import (
    policy_rewards,
    prompt_rows,
    render_prompts,
    rollout_metrics,
    rollout_rows,
    sample_completions,
    saving_on_stop,
    score_completions,
    training_tree,
)


def ppo(settings: PpoSettings, run: StageRun) -> None:
    """Train a policy and its critic on the policy's own scored completions, and publish both as the run's artifact."""
    check_settings(settings)
    rows = prompt_rows(settings, "ppo")
    with policy_rewards(settings, rows, run) as functions:
        loaded = load_model(settings.model, seed=settings.seed)
        prompts, dropped = render_prompts(rows, loaded, settings)
        loader = Loader(list(prompts), settings.seed)
        critic = make_critic(loaded, settings)
        learner = ActorCritic(loaded, critic, settings)
        reference_policy = Reference(loaded) if settings.kl_coef > 0 else None
        controller = KlController(settings.kl_coef, settings.adaptive_kl.target, settings.adaptive_kl.horizon)
        moments = RunningMoments()
        if run.checkpoint:
            state = run.checkpoint.state
            learner.restore(run.checkpoint)
            loader.restore(state["loader"])
            controller, moments = KlController(**state["controller"]), RunningMoments(**state["moments"])
        watch_health(settings, run)
        engine = ENGINES[settings.engine.name](loaded, settings.engine, lambda: run.stop_requested)
        for step in run.steps(settings.max_steps):
            before = state_of(loader, controller, moments)
            batch = [prompts[row_id] for row_id in loader.next(settings.prompts_per_step)]
            with run.phase("generate"), saving_on_stop(run, step - 1, partial(learner.state, before)):
                engine.load_weights(loaded.model)
                completions = sample_completions(engine, batch, settings, step=step)
            with run.phase("score"), saving_on_stop(run, step - 1, partial(learner.state, before)):
                trees = score_completions(batch, completions, settings, functions, policy_version=step - 1)
                scores, moments = shaped_scores(trees, settings, moments)  # (B,)
            with run.phase("evaluate"):
                rollouts = evaluate_rollouts(trees, loaded, reference_policy, critic, settings)
                estimates = estimate(rollouts, scores, settings, kl_coef=controller.coef)
            with run.phase("update"):
                updates = update(learner, rollouts, estimates, settings, step)
            metrics = rollout_metrics(trees) | estimate_metrics(rollouts, scores, estimates, kl_coef=controller.coef)
            metrics |= {"epoch": loader.epoch, "updates": len(updates)} | metrics_of_updates(updates)
            of_trees = mean_advantages(rollouts, estimates, trees)  # (P, G)
            rows_of_step = rollout_rows(step, trees, of_trees, trees_with_tokens=settings.rollout_trees_saved)
            run.log(step, metrics, rollouts=rows_of_step)
            controller = controller.after(metrics.get(f"kl/{settings.adaptive_kl.scale}", 0.0), len(rollouts.mask))
            run.keep_policy(step, partial(save_model, loaded))
            run.save(step, partial(learner.state, state_of(loader, controller, moments)))
        engine.close()
        run.publish_artifact(partial(save_both, loaded, critic))
        run.finish({"prompts": len(prompts), "dropped_rows": len(dropped), "steps": settings.max_steps})


def state_of(loader: Loader, controller: KlController, moments: RunningMoments) -> dict[str, Any]:
    """Return what a checkpoint holds beside the learner."""
    return {"loader": loader.state(), "controller": asdict(controller), "moments": asdict(moments)}


def save_both(policy: LoadedModel, critic: Critic, directory: Path) -> None:
    """Write the policy, as any stage leaves one, and the critic in a folder of its own."""
    save_model(policy, directory)
    critic.save(directory)


def shaped_scores(
    trees: Sequence[Tree], settings: PpoSettings, moments: RunningMoments
) -> tuple[Tensor, RunningMoments]:
    """Return the scores `(B,)` as training sees them, 0 where there is none, and the moments with them among all.

    In this order: a penalty for a missing end, scaling by the running moments, clipping.
    """
    found = []
    for rollout in (rollout for tree in trees for rollout in tree.rollouts):
        truncated = rollout.completion.stop_reason is StopReason.LENGTH
        score = None if rollout.reward is None else rollout.reward - settings.missing_eos_penalty * truncated
        found.append(score)
    moments = moments.after([score for score in found if score is not None])
    shift = moments.mean if settings.reward_scaling == "standardize" else 0.0
    scale = 1.0 if settings.reward_scaling == "none" else moments.std
    scores = torch.tensor([0.0 if score is None else (score - shift) / scale for score in found])
    return scores if settings.reward_clip is None else scores.clamp(
        -settings.reward_clip, settings.reward_clip
    ), moments


def evaluate_rollouts(
    trees: Sequence[Tree],
    loaded: LoadedModel,
    reference_policy: Reference | None,
    critic: Critic,
    settings: PpoSettings,
) -> Rollouts:
    """Return what policy, reference and critic say of the completions before any update."""
    token_trees = [training_tree(tree, mask_truncated=settings.mask_truncated) for tree in trees]
    budget, temperature = settings.max_tokens_per_micro_batch, settings.sampling.temperature
    branches = [branch for tree in token_trees for branch in tree.branches]
    of_engine = [rollout.completion.engine_logprobs for tree in trees for rollout in tree.rollouts]
    truncated = [r.completion.stop_reason is StopReason.LENGTH for tree in trees for r in tree.rollouts]
    logprobs, values, final_values = evaluate_both(loaded, critic, token_trees, budget, temperature=temperature)
    ref_logprobs = None
    if reference_policy is not None:
        with reference_policy.active() as frozen:
            ref_logprobs = padded(evaluate_logprobs(frozen, token_trees, budget, temperature=temperature))
    return Rollouts(
        trees=token_trees,
        mask=padded([branch.mask for branch in branches]).bool(),
        engine_logprobs=padded(of_engine),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        final_values=torch.where(torch.tensor(truncated), final_values, 0.0),
    )


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Return the rows as `(B, T)` in float32, 0 behind each row's end."""
    return pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)


def estimate(rollouts: Rollouts, scores: Tensor, settings: PpoSettings, *, kl_coef: float) -> Estimates:
    """Return each token's advantage and return from the scores `(B,)` and the KL to the reference."""
    rewards = token_rewards(
        scores,
        rollouts.mask,
        logprobs=rollouts.logprobs,
        ref_logprobs=rollouts.ref_logprobs,
        kl_coef=kl_coef,
    )
    advantages, returns = gae(
        rewards,
        rollouts.values,
        rollouts.mask,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        final_values=rollouts.final_values if settings.bootstrap_truncated else None,
    )
    trained = whiten(advantages, rollouts.mask) if settings.whiten_advantages else advantages
    return Estimates(advantages=trained, returns=returns, unscaled_advantages=advantages)


def update(
    learner: ActorCritic, rollouts: Rollouts, estimates: Estimates, settings: PpoSettings, step: int
) -> list[dict[str, float]]:
    """Pass over the rollouts in mini-batches and return each update's metrics.

    The passes end after an update that began further than `target_kl` from the policy of the rollouts.
    """
    updates: list[dict[str, float]] = []
    policy_learns = step > settings.critic.warmup_steps
    for epoch in range(settings.num_ppo_epochs):
        for trees in mini_batches(len(rollouts.trees), settings, step, epoch):
            part = MiniBatch(rollouts, estimates, trees)
            updates.append(learner.update(part, policy_learns=policy_learns))
            if settings.target_kl is not None and updates[-1].get("kl/old", 0.0) > settings.target_kl:
                planned = settings.num_ppo_epochs * settings.num_mini_batches
                learner.pass_over(planned - len(updates), policy_learns=policy_learns)
                return updates
    return updates


def mini_batches(num_trees: int, settings: PpoSettings, step: int, epoch: int) -> Iterator[list[int]]:
    """Yield the trees of each update, all of them once, in an order of the step's and the pass's own."""
    order = list(range(num_trees))
    random.Random(derive_seed(settings.seed, "mini-batches", step, epoch)).shuffle(order)
    bounds = [num_trees * index // settings.num_mini_batches for index in range(settings.num_mini_batches + 1)]
    return (sorted(order[start:end]) for start, end in pairwise(bounds) if end > start)


def estimate_metrics(rollouts: Rollouts, scores: Tensor, estimates: Estimates, *, kl_coef: float) -> dict[str, float]:
    """Return what there is to watch before an update; the scale of a KL is in its name."""
    mask, kept = rollouts.mask, rollouts.mask.any(-1)
    metrics = {
        "objective/scores": masked_mean(scores, kept).item(),
        "values/mean": masked_mean(rollouts.values, mask).item(),
        "values/explained_variance": explained_variance(rollouts.values, estimates.returns, mask),
        "returns/mean": masked_mean(estimates.returns, mask).item(),
        "advantages/std": estimates.unscaled_advantages[mask].std().item() if mask.sum() > 1 else 0.0,
    }
    if rollouts.ref_logprobs is not None:
        kl = k1(rollouts.logprobs, rollouts.ref_logprobs)
        metrics["kl/sequence"] = masked_mean(masked_sum(kl, mask, dim=-1), kept).item()
        metrics["kl/token"] = masked_mean(kl, mask).item()
        metrics["kl_coef"] = kl_coef
        metrics["objective/rlhf_reward"] = metrics["objective/scores"] - kl_coef * metrics["kl/sequence"]
    return metrics


def mean_advantages(rollouts: Rollouts, estimates: Estimates, trees: Sequence[Tree]) -> Tensor:
    """Return the mean over each completion's tokens of their advantages, `(P, G)`."""
    return masked_mean(estimates.advantages, rollouts.mask, dim=-1).view(len(trees), -1)

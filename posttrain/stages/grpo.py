"""Group-relative policy optimisation: sample, score, compare within the group, update.

Floor 5. DeepSeekMath, Shao et al. 2024, arXiv 2402.03300; with the choices of Dr. GRPO (arXiv 2503.20783), DAPO
(arXiv 2503.14476) and RLOO (arXiv 2402.14740) as settings. Each differs in the advantage or in the denominator only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from posttrain.algorithms.advantages import group_advantages, group_signal
from posttrain.algorithms.losses import clipped_policy_loss
from posttrain.algorithms.tokens import aggregate, k3, token_mean
from posttrain.data.loader import Loader
from posttrain.data.trees import TreeBatch
from posttrain.engines import ENGINES
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.models.logprobs import TokenLogprobs, completion_logprobs
from posttrain.records import TokenTree, Tree
from posttrain.rewards import REWARD_MODEL
from posttrain.runs.directory import StageRun
from posttrain.settings import GrpoSettings
from posttrain.stages.checks import check_settings
from posttrain.stages.health import watch_health
from posttrain.stages.optimize import LossShare, Updater, evaluate_logprobs, metrics_of_updates, trained_tokens
from posttrain.stages.reference import Reference
from posttrain.stages.rollout import (
    policy_rewards,
    prompt_rows,
    render_prompts,
    reward_table,
    rollout_metrics,
    rollout_rows,
    sample_completions,
    saving_on_stop,
    score_completions,
    training_tree,
)


def grpo(settings: GrpoSettings, run: StageRun) -> None:
    """Train a policy on its own scored completions and publish it as the run's artifact."""
    check_settings(settings)
    rows = prompt_rows(settings, "grpo")
    with policy_rewards(settings, rows, run) as functions:
        loaded = load_model(settings.model, seed=settings.seed)
        prompts, dropped = render_prompts(rows, loaded, settings)
        loader = Loader(list(prompts), settings.seed)
        updater = Updater(loaded, settings, num_updates=settings.max_steps * settings.num_iterations)
        forward = partial(completion_logprobs, temperature=settings.sampling.temperature)
        reference_policy = Reference(loaded) if settings.kl_coef > 0 else None
        if run.checkpoint:
            updater.restore(run.checkpoint)
            loader.restore(run.checkpoint.state["loader"])
        watch_health(settings, run)
        engine = ENGINES[settings.engine.name](loaded, settings.engine, lambda: run.stop_requested)
        for step in run.steps(settings.max_steps):
            before = {"loader": loader.state()}
            batch = [prompts[row_id] for row_id in loader.next(settings.prompts_per_step)]
            with run.phase("generate"), saving_on_stop(run, step - 1, partial(updater.state, before)):
                engine.load_weights(loaded.model)
                completions = sample_completions(engine, batch, settings, step=step)
            with run.phase("score"), saving_on_stop(run, step - 1, partial(updater.state, before)):
                trees = score_completions(batch, completions, settings, functions, policy_version=step - 1)
                rewards = reward_table(trees)  # (P, G)
                advantages = group_advantages(
                    rewards, baseline=settings.advantage_baseline, scale=settings.advantage_scale
                )  # (P, G)
            with run.phase("update"):
                data = policy_data(trees, advantages, loaded, reference_policy, settings)
                metrics = [
                    updater.update(data.trees, data.loss_share(settings), forward=forward)
                    for _ in range(settings.num_iterations)
                ]
            run.log(
                step,
                rollout_metrics(trees)
                | signal_metrics(rewards, settings)
                | {"epoch": loader.epoch}
                | metrics_of_updates(metrics),
                rollouts=rollout_rows(step, trees, advantages, trees_with_tokens=settings.rollout_trees_saved),
            )
            run.keep_policy(step, partial(save_model, loaded))
            run.save(step, lambda: updater.state({"loader": loader.state()}))
        engine.close()
        run.publish_artifact(partial(save_model, loaded))
        run.finish({"prompts": len(prompts), "dropped_rows": len(dropped), "steps": settings.max_steps})


@dataclass(frozen=True, slots=True)
class PolicyData:
    """What one step trains on; per-branch entries are in the order of the trees' branches."""

    trees: list[TokenTree]
    advantages: Tensor  # (B,)
    engine_logprobs: list[tuple[float, ...]]
    old_logprobs: list[tuple[float, ...]] | None  # None: on-policy, the ratio is exactly 1
    ref_logprobs: list[tuple[float, ...]] | None
    num_sequences: int  # of all trees of the step, like the tokens: left-out trees count in the loss's denominators
    num_tokens: int
    num_tokens_kept: int  # of the trees trained on

    def loss_share(self, settings: GrpoSettings) -> LossShare:
        """Return the share that a micro-batch has in the step's loss."""

        def share(
            batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]
        ) -> tuple[Tensor, Mapping[str, Tensor]]:
            mask = batch.completion_mask

            def mean(values: Tensor) -> Tensor:
                return token_mean(values, mask, num_tokens=self.num_tokens_kept)

            detached = tokens.logprobs.detach()
            policy = clipped_policy_loss(
                tokens.logprobs,
                None if self.old_logprobs is None else batch.pad([self.old_logprobs[b] for b in branches]),
                self.advantages[list(branches)].to(mask.device),
                mask,
                epsilon_low=settings.epsilon_low,
                epsilon_high=settings.epsilon_high,
            )
            per_token = policy.per_token
            watched = {
                "entropy": mean(tokens.entropy.detach()),
                "clip_ratio/low_mean": mean(policy.clipped_low),
                "clip_ratio/high_mean": mean(policy.clipped_high),
                "kl/old": mean(policy.approx_kl),
                "kl/engine": mean(k3(batch.pad([self.engine_logprobs[b] for b in branches]), detached)),
            }
            if self.ref_logprobs is not None:
                penalty = k3(tokens.logprobs, batch.pad([self.ref_logprobs[b] for b in branches]))
                per_token = per_token + settings.kl_coef * penalty
                watched["kl"] = mean(penalty.detach())
            loss = aggregate(
                per_token,
                mask,
                settings.loss_aggregation,
                num_sequences=self.num_sequences,
                num_tokens=self.num_tokens,
                max_length=settings.sampling.max_completion_length,
            )
            return loss, watched

        return share


def policy_data(
    trees: Sequence[Tree],
    advantages: Tensor,
    loaded: LoadedModel,
    reference_policy: Reference | None,
    settings: GrpoSettings,
) -> PolicyData:
    """Return what a step trains on; trees without any advantage are left out where nothing else pulls on them.

    The denominators count every tree, so leaving out changes no gradient.
    """
    training_trees = [training_tree(tree, mask_truncated=settings.mask_truncated) for tree in trees]
    trained = [sum(branch.mask) for tree in training_trees for branch in tree.branches]
    kept_indices = [i for i in range(len(trees)) if reference_policy is not None or bool(advantages[i].any())]
    kept = [training_trees[i] for i in kept_indices]
    old = ref = None
    if settings.num_iterations > 1 and kept:
        old = evaluate_logprobs(
            loaded, kept, settings.max_tokens_per_micro_batch, temperature=settings.sampling.temperature
        )
    if reference_policy is not None:
        with reference_policy.active() as frozen:
            ref = evaluate_logprobs(
                frozen, kept, settings.max_tokens_per_micro_batch, temperature=settings.sampling.temperature
            )
    return PolicyData(
        trees=kept,
        advantages=advantages[kept_indices].flatten(),
        engine_logprobs=[rollout.completion.engine_logprobs for i in kept_indices for rollout in trees[i].rollouts],
        old_logprobs=old,
        ref_logprobs=ref,
        num_sequences=sum(count > 0 for count in trained),
        num_tokens=sum(trained),
        num_tokens_kept=trained_tokens(kept),
    )


def signal_metrics(rewards: Tensor, settings: GrpoSettings) -> dict[str, float]:
    """Return what the groups of rewards `(P, G)` teach.

    A reward model's scores, and rewards that were normalised, have no line from which they solve.
    """
    signal = group_signal(rewards, solved_at=sum(settings.rewards.values()) / 2)
    metrics: dict[str, float] = {"groups/mixed": signal.mixed, "frac_reward_zero_std": signal.frac_reward_zero_std}
    if settings.rewards.get(REWARD_MODEL) or settings.reward_combination == "normalized_sum":
        return metrics
    return {"groups/solved": signal.solved, "groups/failed": signal.failed, **metrics}

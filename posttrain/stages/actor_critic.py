"""The updates of a policy and its critic on mini-batches of the same rollouts.

Floor 5: an optimizer each, or one for both where they share a model. What is trained on comes as tensors `(B, T)` on
the CPU, in the order of the step's branches, 0 where there is no token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.losses import clipped_policy_loss, clipped_value_loss
from posttrain.algorithms.tokens import aggregate, k3, token_mean
from posttrain.data.trees import TreeBatch
from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import TokenLogprobs, completion_logprobs
from posttrain.models.values import TokenValues, logprobs_and_values
from posttrain.records import TokenTree
from posttrain.runs.checkpoint import Checkpoint
from posttrain.runs.directory import TrainerState
from posttrain.settings import PpoSettings
from posttrain.stages.critic import Critic
from posttrain.stages.optimize import LossShare, Updater

Watched = tuple[Tensor, Mapping[str, Tensor]]  # a share of the loss, and of what there is to watch


@dataclass(frozen=True, slots=True)
class Rollouts:
    """A step's completions, and what engine, policy, reference and critic said of them before any update."""

    trees: list[TokenTree]
    mask: Tensor  # bool, True = trained token
    engine_logprobs: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor | None
    values: Tensor
    final_values: Tensor  # (B,), after the last token of a completion that was cut off, else 0


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the critic learns, the returns, and what the policy does, the advantages, as they were and as trained on."""

    returns: Tensor
    unscaled_advantages: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class MiniBatch:
    """Some trees of a step: the rollouts of one update, with its denominators."""

    rollouts: Rollouts
    estimates: Estimates
    places: Sequence[int]  # of its trees among the step's

    @cached_property
    def trees(self) -> list[TokenTree]:
        return [self.rollouts.trees[place] for place in self.places]

    @cached_property
    def rows(self) -> Tensor:
        """Places of the branches among the step's, `(b,)`."""
        ends = torch.tensor([0, *(len(tree.branches) for tree in self.rollouts.trees)]).cumsum(0).tolist()
        return torch.tensor([row for place in self.places for row in range(ends[place], ends[place + 1])])

    @cached_property
    def num_tokens(self) -> int:
        return int(self.rollouts.mask[self.rows].sum())

    @cached_property
    def num_sequences(self) -> int:
        return int(self.rollouts.mask[self.rows].any(-1).sum())

    def of(self, values: Tensor, batch: TreeBatch, branches: Sequence[int]) -> Tensor:
        """Return the values `(B, T)` of a micro-batch's branches, on its device."""
        width = batch.completion_mask.shape[1]
        return values[self.rows[list(branches)], :width].to(batch.completion_mask.device)


class ActorCritic:
    """Policy and critic in training: their optimizers, and what a checkpoint holds of them."""

    def __init__(self, policy: LoadedModel, critic: Critic, settings: PpoSettings) -> None:
        self._critic = critic
        self._settings = settings
        a_step = settings.num_ppo_epochs * settings.num_mini_batches
        shared = critic.kind == "shared"
        self._policy = Updater(
            policy,
            settings,
            (settings.max_steps - settings.critic.warmup_steps) * a_step,
            beside=critic.trained_head if shared else {},
        )
        self._values: Updater | None = None
        if not shared:
            of_critic = {"learning_rate": settings.critic.learning_rate or settings.learning_rate}
            with critic.active():
                self._values = Updater(
                    critic.loaded,
                    settings.model_copy(update=of_critic),
                    settings.max_steps * a_step,
                    beside=critic.trained_head,
                    name="critic",
                )

    def update(self, part: MiniBatch, *, policy_learns: bool) -> dict[str, float]:
        """Take an optimizer step of the critic and, where the policy learns, of the policy."""
        temperature = self._settings.sampling.temperature
        if self._values is None:
            both = partial(logprobs_and_values, head=self._critic.head, temperature=temperature)
            return self._policy.update(part.trees, shared_share(part, self._settings), forward=both)
        with self._critic.active():
            of_values = self._values.update(part.trees, value_share(part, self._settings), forward=self._critic.forward)
        metrics = {name if name.startswith("value/") else f"value/{name}": v for name, v in of_values.items()}
        if policy_learns:
            forward = partial(completion_logprobs, temperature=temperature)
            metrics |= self._policy.update(part.trees, policy_share(part, self._settings), forward=forward)
        return metrics

    def pass_over(self, num_updates: int, *, policy_learns: bool) -> None:
        """Count updates of a step that are not made."""
        if policy_learns:
            self._policy.pass_over(num_updates)
        if self._values is not None:
            self._values.pass_over(num_updates)

    def state(self, of_stage: Mapping[str, Any]) -> TrainerState:
        """Return `(tensors, state)` for a checkpoint."""
        tensors, state = self._policy.state(of_stage)
        if self._values is not None:
            of_critic, critic_state = self._values.state({})
            tensors, state = tensors | of_critic, state | critic_state
        return tensors, state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what `state` returned, except the stage's own part."""
        self._policy.restore(checkpoint)
        if self._values is not None:
            self._values.restore(checkpoint)


def policy_share(part: MiniBatch, settings: PpoSettings) -> LossShare:
    """Return the share that a micro-batch has in the policy loss of an update."""

    def share(batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]) -> Watched:
        mask = batch.completion_mask

        def mean(values: Tensor) -> Tensor:
            return token_mean(values, mask, num_tokens=part.num_tokens)

        policy = clipped_policy_loss(
            tokens.logprobs,
            part.of(part.rollouts.logprobs, batch, branches),
            part.of(part.estimates.advantages, batch, branches),
            mask,
            epsilon_low=settings.epsilon_low,
            epsilon_high=settings.epsilon_high,
            dual_clip=settings.dual_clip,
        )
        per_token = policy.per_token
        if settings.entropy_coef > 0:
            per_token = per_token - settings.entropy_coef * tokens.entropy
        loss = aggregate(
            per_token,
            mask,
            settings.loss_aggregation,
            num_sequences=part.num_sequences,
            num_tokens=part.num_tokens,
            max_length=settings.sampling.max_completion_length,
        )
        of_engine = part.of(part.rollouts.engine_logprobs, batch, branches)
        return loss, {
            "entropy": mean(tokens.entropy.detach()),
            "clip_ratio/low_mean": mean(policy.clipped_low),
            "clip_ratio/high_mean": mean(policy.clipped_high),
            "clip_ratio/dual_mean": mean(policy.clipped_dual),
            "kl/old": mean(policy.approx_kl),
            "kl/engine": mean(k3(of_engine, tokens.logprobs.detach())),
        }

    return share


def value_share(part: MiniBatch, settings: PpoSettings) -> LossShare:
    """Return the share that a micro-batch has in the value loss of an update."""

    def share(batch: TreeBatch, found: TokenValues, branches: Sequence[int]) -> Watched:
        mask = batch.completion_mask
        of_values = clipped_value_loss(
            found.values,
            part.of(part.rollouts.values, batch, branches),
            part.of(part.estimates.returns, batch, branches),
            mask,
            clip=settings.critic.value_clip,
        )
        loss = token_mean(of_values.per_token, mask, num_tokens=part.num_tokens)
        return loss, {"value/clip_ratio": token_mean(of_values.clipped, mask, num_tokens=part.num_tokens)}

    return share


def shared_share(part: MiniBatch, settings: PpoSettings) -> LossShare:
    """Return the share that a micro-batch has in the sum of both losses, of one pass through a shared model."""
    of_policy, of_values = policy_share(part, settings), value_share(part, settings)

    def share(batch: TreeBatch, both: tuple[TokenLogprobs, TokenValues], branches: Sequence[int]) -> Watched:
        policy_loss, policy_metrics = of_policy(batch, both[0], branches)
        value_loss, value_metrics = of_values(batch, both[1], branches)
        watched = {**policy_metrics, **value_metrics, "value/loss": value_loss.detach()}
        return policy_loss + settings.critic.loss_coef * value_loss, watched

    return share

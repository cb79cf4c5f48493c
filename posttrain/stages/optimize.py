"""AdamW, its schedule and the one update that all training stages share.

Floor 5. An update sums the shares that micro-batches have in one loss with global denominators, so that its result
does not depend on how the trees were cut.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from posttrain.algorithms.losses import sft_loss
from posttrain.algorithms.tokens import token_mean
from posttrain.data.trees import MicroBatch, TreeBatch, build_batch, cut_micro_batches, in_order
from posttrain.errors import NonFiniteError
from posttrain.models.files import HEAD
from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import Model, TokenLogprobs, completion_logprobs, plain_model
from posttrain.records import TokenTree
from posttrain.runs.checkpoint import Checkpoint
from posttrain.runs.training_state import optimizer_tensors, restore_optimizer
from posttrain.seeds import derive_seed
from posttrain.settings import OptimizedStageSettings, RowStageSettings

# What a model says of a batch: log-probs of its completion tokens, or scores of its branches.
Forward = Callable[[Model, TreeBatch], Any]
# From a micro-batch, what the forward said of it, and the places of its branches among all of the update: its share of
# the loss, and its shares of what to watch (each summed over the update).
LossShare = Callable[[TreeBatch, Any, Sequence[int]], tuple[Tensor, Mapping[str, Tensor]]]

MAX_SKIPPED_IN_A_ROW = 3


def learning_rate_at(update: int, num_updates: int, settings: OptimizedStageSettings) -> float:
    """Return the learning rate of an update counted from 0: linear warm-up, then constant, linear or cosine decay."""
    if update < settings.warmup_steps:
        return settings.learning_rate * (update + 1) / settings.warmup_steps
    left = 1 - (update - settings.warmup_steps) / max(num_updates - settings.warmup_steps, 1)
    match settings.lr_scheduler_type:
        case "constant":
            return settings.learning_rate
        case "linear":
            return settings.learning_rate * left
        case "cosine":
            return settings.learning_rate * (1 - math.cos(math.pi * left)) / 2


def make_optimizers(
    loaded: LoadedModel, trained: Mapping[str, Tensor], settings: OptimizedStageSettings
) -> list[Optimizer]:
    """Return AdamW for all trained weights, or Muon for the matrices inside the model and AdamW for the others.

    Muon: Keller Jordan et al. 2024, kellerjordan.github.io/posts/muon; its steps are scaled to AdamW's size (Moonlight,
    arXiv 2502.16982), so that one learning rate serves both. Weight decay is of matrices only.
    """
    plain = plain_model(loaded.model)
    score_head = [plain.get_submodule(HEAD)] if hasattr(plain, HEAD) else []
    ends = {id(end.weight) for end in [plain.get_input_embeddings(), plain.get_output_embeddings(), *score_head]}
    inside = {id(parameter) for parameter in plain.parameters()} - ends
    muon = [p for p in trained.values() if settings.optimizer == "muon" and p.ndim == 2 and id(p) in inside]
    others = [p for p in trained.values() if not any(p is matrix for matrix in muon)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        fused=loaded.device.type in ("cpu", "cuda"),
    )
    if not muon:
        return [adamw]
    return [
        adamw,
        Muon(
            muon,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
    ]


class Updater:
    """The optimizer of a model's trainable weights: its updates, its place in the schedule and its resumable state.

    `beside` are weights outside the model that are trained with it; `name` tells the states of two updaters apart.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: OptimizedStageSettings,
        num_updates: int,
        *,
        beside: Mapping[str, Tensor] = MappingProxyType({}),
        name: str = "",
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._num_updates = num_updates
        self._prefix = f"{name}-" if name else ""
        self._updates = 0
        self._skipped_in_a_row = 0
        self._trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad} | {**beside}
        self._optimizers = make_optimizers(loaded, self._trained, settings)

    def update(
        self,
        trees: Sequence[TokenTree],
        loss_share: LossShare,
        *,
        forward: Forward = completion_logprobs,
        whole_trees: bool = False,
    ) -> dict[str, float]:
        """Take one optimizer step on the trees and return the loss, the gradient norm and what the loss watches.

        `whole_trees` keeps the branches of a tree in one micro-batch, for a loss that compares them. Without trained
        tokens there is no step to take. A loss or gradient that is not finite changes nothing: the update is skipped
        and counted; NonFiniteError is raised after more than MAX_SKIPPED_IN_A_ROW in a row.
        """
        learning_rate = learning_rate_at(self._updates, self._num_updates, self._settings)
        if not trained_tokens(trees):
            self._updates += 1
            return {"loss": 0.0, "grad_norm": 0.0, "learning_rate": learning_rate, "skipped_update": 0.0}
        torch.manual_seed(derive_seed(self._settings.seed, "update", self._updates))  # for adapter dropout
        totals = self._accumulate(trees, loss_share, forward, whole_trees)
        parameters = list(self._trained.values())
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm).item()
        finite = math.isfinite(totals["loss"]) and math.isfinite(grad_norm)
        if finite:
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        self._updates += 1
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(
                f"the loss ({totals['loss']}) or gradient norm ({grad_norm}) was not finite "
                f"{self._skipped_in_a_row} times in a row; the weights are those before",
                fix=f"--learning_rate {self._settings.learning_rate / 10:g}",
            )
        return totals | {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped_update": float(not finite),
            "update/tokens": float(all_tokens(trees)),
        }

    def _accumulate(
        self, trees: Sequence[TokenTree], loss_share: LossShare, forward: Forward, whole_trees: bool
    ) -> dict[str, float]:
        """Add up gradients, losses and watched values over the micro-batches."""
        totals: dict[str, float] = {"loss": 0.0}
        budget = self._settings.max_tokens_per_micro_batch
        for micro_batch, batch, output in forward_all(self._loaded, trees, budget, forward, whole_trees=whole_trees):
            loss, watched = loss_share(batch, output, micro_batch.branches)
            torch.autograd.backward(loss)
            for name, value in {"loss": loss, **watched}.items():
                totals[name] = totals.get(name, 0.0) + value.item()
        return totals

    def pass_over(self, num_updates: int) -> None:
        """Count updates that are not made, so that the learning rate keeps to the steps."""
        self._updates += num_updates

    def state(self, of_stage: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return `(tensors, state)` for a checkpoint: weights, moments, place in the schedule, and the stage's own."""
        tensors: dict[str, dict[str, Tensor]] = {}
        groups = []
        for index, optimizer in enumerate(self._optimizers):
            tensors[f"{self._prefix}optimizer-{index}"], of_optimizer = optimizer_tensors(optimizer, self._trained)
            groups.append(of_optimizer)
        tensors[f"{self._prefix}weights"] = {name: parameter.detach() for name, parameter in self._trained.items()}
        state = {"groups": groups, "updates": self._updates, "skipped_in_a_row": self._skipped_in_a_row}
        return tensors, {f"{self._prefix}updater": state, **of_stage}

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what `state` returned, except the stage's own part."""
        state = checkpoint.state[f"{self._prefix}updater"]
        for index, (optimizer, groups) in enumerate(zip(self._optimizers, state["groups"], strict=True)):
            restore_optimizer(optimizer, self._trained, checkpoint.tensors(f"{self._prefix}optimizer-{index}"), groups)
        weights = checkpoint.tensors(f"{self._prefix}weights")
        for name, parameter in self._trained.items():
            parameter.copy_(weights[name])
        self._updates, self._skipped_in_a_row = state["updates"], state["skipped_in_a_row"]


def forward_all(
    loaded: LoadedModel,
    trees: Sequence[TokenTree],
    max_tokens: int,
    forward: Forward,
    *,
    whole_trees: bool = False,
) -> Iterator[tuple[MicroBatch, TreeBatch, Any]]:
    """Cut the trees into micro-batches and yield each with its batch, on the model's device, and the forward's output.

    Runs in the caller's gradient mode.
    """
    for micro_batch in cut_micro_batches(trees, max_tokens, layout=loaded.layout, whole_trees=whole_trees):
        batch = build_batch(micro_batch.trees, layout=loaded.layout, pad_id=loaded.pad_id).to(loaded.device)
        yield micro_batch, batch, forward(loaded.model, batch)


@torch.no_grad()
def evaluate_logprobs(
    loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int, *, temperature: float
) -> list[tuple[float, ...]]:
    """Return the log-probs of every branch's tokens, branch by branch, without gradients."""
    forward = partial(completion_logprobs, temperature=temperature)
    return in_order(
        (micro_batch, batch.unpad(tokens.logprobs))
        for micro_batch, batch, tokens in forward_all(loaded, trees, max_tokens, forward)
    )


def metrics_of_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the updates of a step that have a metric; `kl/engine` is the first's, on-policy."""
    found = {name: [update[name] for update in updates if name in update] for update in updates for name in update}
    return {name: values[0] if name == "kl/engine" else fmean(values) for name, values in found.items()}


def token_mean_loss(trees: Sequence[TokenTree]) -> LossShare:
    """Return the loss share of an update: every trained token of the trees weighs the same."""
    num_tokens = trained_tokens(trees)

    def share(batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        mask = batch.completion_mask
        entropy = token_mean(tokens.entropy.detach(), mask, num_tokens=num_tokens)
        return sft_loss(tokens.logprobs, mask, num_tokens=num_tokens), {"entropy": entropy}

    return share


def all_tokens(trees: Sequence[TokenTree]) -> int:
    """Count the tokens that the trees hold, every prompt once."""
    return sum(len(tree.prompt_ids) + sum(len(branch.ids) for branch in tree.branches) for tree in trees)


def trained_tokens(trees: Sequence[TokenTree]) -> int:
    """Count the tokens that the trees train."""
    return sum(sum(branch.mask) for tree in trees for branch in tree.branches)


def steps_of_rows(settings: RowStageSettings, num_rows: int) -> list[int]:
    """Return how many rows each step takes: the last one takes what is left of the epochs."""
    wanted = settings.max_steps * settings.rows_per_step or max(1, round(settings.num_train_epochs * num_rows))
    whole, rest = divmod(wanted, settings.rows_per_step)
    return [settings.rows_per_step] * whole + [rest] * (rest > 0)

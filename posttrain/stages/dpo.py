"""Direct preference optimisation and its relatives: pairs (or judged completions) against a frozen reference.

Floor 5. DPO, Rafailov et al. 2023, arXiv 2305.18290; the others stand in `algorithms/preferences`. A pair is one prompt
tree of two branches, computed together; the reference sees the same tree in the same step, or once before training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from posttrain.algorithms import preferences
from posttrain.algorithms.losses import sft_loss
from posttrain.data.chat import drop_overlong
from posttrain.data.loader import Loader
from posttrain.data.pairs import branch_labels, render_preference
from posttrain.data.sources import load_rows, require_kind
from posttrain.data.trees import TreeBatch
from posttrain.models.lm import LoadedModel, load_model, save_model
from posttrain.models.logprobs import TokenLogprobs
from posttrain.records import Branch, TokenTree
from posttrain.runs.directory import StageRun
from posttrain.settings import DpoSettings
from posttrain.stages.checks import check_settings, row_kinds
from posttrain.stages.optimize import LossShare, Updater, steps_of_rows, trained_tokens
from posttrain.stages.preference_losses import PREFERENCE_LOSSES, beta_of, main_loss, needs_reference
from posttrain.stages.reference import Reference, cached_sequence_logprobs, evaluate_sequences

FALL = 0.05  # nats a token below the start, from which falling log-probs are told
SMOOTHING = 0.8  # of the change, from step to step: one step's rows are noisy
FALLING = (
    "chosen and rejected completions are both becoming less likely than at the start: the policy may drift to answers "
    "of neither kind; --losses.sft 0.1 beside the loss, a larger beta or a smaller learning_rate hold it back"
)


def dpo(settings: DpoSettings, run: StageRun) -> None:
    """Train a policy on preferences and publish it as the run's artifact."""
    check_settings(settings)
    kinds = row_kinds(settings)
    rows = load_rows(settings.data, seed=settings.seed, kinds=kinds)
    require_kind(rows, kinds, "dpo")
    labels = {row.id: branch_labels(row) for row in rows}
    loaded = load_model(settings.model, seed=settings.seed)
    max_length = loaded.fit(settings.data.max_length)
    trees, dropped = drop_overlong(rows, lambda row: render_preference(row, loaded.tokenizer), max_length=max_length)
    loader = Loader(list(trees), settings.seed)
    rows_of_step = steps_of_rows(settings, len(trees))
    updater = Updater(loaded, settings, num_updates=len(rows_of_step))
    reference = ReferenceLogprobs(loaded, trees, settings, run)
    progress = {"num_tokens": 0}
    watch = FallWatch()
    if run.checkpoint:
        updater.restore(run.checkpoint)
        loader.restore(run.checkpoint.state["loader"])
        progress = dict(run.checkpoint.state["progress"])
        watch = FallWatch(**run.checkpoint.state["watch"])
    for step in run.steps(len(rows_of_step)):
        row_ids = loader.next(rows_of_step[step - 1])
        batch = [trees[row_id] for row_id in row_ids]
        with run.phase("reference"):
            kl = reference.kl(loaded, batch, max_length) if "kto" in settings.losses else None
            data = preference_data(batch, [labels[row_id] for row_id in row_ids], reference.of(row_ids, batch), kl)
        with run.phase("update"):
            metrics = updater.update(batch, preference_share(data, settings), whole_trees=True)
        progress["num_tokens"] += trained_tokens(batch)
        run.log(step, metrics | {"epoch": loader.epoch, **progress})
        if watch.notices(metrics):
            run.event("falling", FALLING)
        run.keep_policy(step, partial(save_model, loaded))
        run.save(step, lambda: updater.state({"loader": loader.state(), "progress": progress, "watch": asdict(watch)}))
    run.publish_artifact(partial(save_model, loaded))
    run.finish({"rows": len(trees), "dropped_rows": len(dropped), "steps": len(rows_of_step), **progress})


class ReferenceLogprobs:
    """The reference's summed log-probs of each step's completions: cached, computed, or none where none is needed."""

    def __init__(
        self, loaded: LoadedModel, trees: Mapping[str, TokenTree], settings: DpoSettings, run: StageRun
    ) -> None:
        self._max_tokens = settings.max_tokens_per_micro_batch
        self._cached: dict[str, Tensor] | None = None
        self._policy: Reference | None = None
        if needs_reference(settings) and settings.reference_cache is not None:
            self._cached = cached_sequence_logprobs(
                loaded, trees, Path(settings.reference_cache), self._max_tokens, on_progress=run.check_stop
            )
        elif needs_reference(settings):
            self._policy = Reference(loaded)

    def of(self, row_ids: Sequence[str], trees: Sequence[TokenTree]) -> Tensor | None:
        """Return the sums `(B,)` of the branches of a step's trees."""
        if self._cached is not None:
            return torch.cat([self._cached[row_id] for row_id in row_ids])
        return None if self._policy is None else self._policy.sequence_logprobs(trees, self._max_tokens)

    def kl(self, loaded: LoadedModel, trees: Sequence[TokenTree], max_length: int) -> Tensor:
        """Return KTO's estimate from prompts with completions of others; 0 where a step has one prompt only."""
        assert self._policy is not None
        mismatched = mismatched_trees(trees, max_length)
        if not mismatched:
            return torch.zeros(())
        policy = evaluate_sequences(loaded, mismatched, self._max_tokens)
        return preferences.kto_kl(policy - self._policy.sequence_logprobs(mismatched, self._max_tokens))


def mismatched_trees(trees: Sequence[TokenTree], max_length: int) -> list[TokenTree]:
    """Return each tree's prompt with all completions of the next tree, in a circle, that has another prompt.

    Completions are cut where the sequence would be longer than `max_length`. A tree without another prompt is left
    out: its own completions would estimate what training aims at, not the KL.
    """
    found = []
    for place, tree in enumerate(trees):
        following = (*trees[place + 1 :], *trees[:place])
        other = next((each for each in following if each.prompt_ids != tree.prompt_ids), None)
        if other is not None:
            room = max_length - len(tree.prompt_ids)
            cut = tuple(Branch(branch.ids[:room], branch.mask[:room]) for branch in other.branches)
            found.append(TokenTree(tree.prompt_ids, cut))
    return found


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """What one step trains on, branch by branch, and the step's denominators."""

    desirable: Tensor  # (B,) bool
    ref_logprobs: Tensor | None  # (B,) summed over the trained tokens
    num_pairs: int  # 0 where rows are not pairs
    num_desirable: int
    num_undesirable: int
    num_desirable_tokens: int
    kl: Tensor | None  # KTO's estimate of KL(policy || reference)


def preference_data(
    trees: Sequence[TokenTree], labels: Sequence[tuple[bool, ...]], ref_logprobs: Tensor | None, kl: Tensor | None
) -> PreferenceData:
    """Return a step's data from its trees and the labels of their branches."""
    desirable = [label for of_tree in labels for label in of_tree]
    branches = [branch for tree in trees for branch in tree.branches]
    return PreferenceData(
        desirable=torch.tensor(desirable),
        ref_logprobs=ref_logprobs,
        num_pairs=sum(len(of_tree) == 2 for of_tree in labels),
        num_desirable=sum(desirable),
        num_undesirable=len(desirable) - sum(desirable),
        num_desirable_tokens=sum(sum(b.mask) for b, wanted in zip(branches, desirable, strict=True) if wanted),
        kl=kl,
    )


def preference_share(data: PreferenceData, settings: DpoSettings) -> LossShare:
    """Return the share that a micro-batch of whole trees has in the step's weighted losses."""
    main = main_loss(settings)

    def share(batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        places = list(branches)
        desirable = data.desirable[places].to(tokens.logprobs.device)
        sums, lengths = preferences.sequence_logprobs(tokens.logprobs, batch.completion_mask)
        ref = None if data.ref_logprobs is None else data.ref_logprobs[places].to(sums.device)
        losses: dict[str, Tensor] = {}
        for name in settings.losses:
            if name == "sft":
                mask = batch.completion_mask & desirable[:, None]
                losses[name] = sft_loss(tokens.logprobs, mask, num_tokens=data.num_desirable_tokens)
            elif name == "kto":
                scores = scores_of(name, sums, lengths, ref)
                losses[name] = judged_loss(scores, desirable, data, settings).sum() / len(data.desirable)
            else:
                scores = scores_of(name, sums, lengths, ref)
                losses[name] = pair_loss(name, scores[0::2], scores[1::2], settings).sum() / data.num_pairs
        rewards = beta_of(main, settings) * scores_of(main, sums, lengths, ref)
        watched = watched_shares({"rewards": rewards, "logps": sums, "lengths": lengths}, ref, desirable, data)
        if len(losses) > 1:
            watched |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        return torch.stack([settings.losses[name] * loss for name, loss in losses.items()]).sum(), watched

    return share


def scores_of(name: str, sums: Tensor, lengths: Tensor, ref_logprobs: Tensor | None) -> Tensor:
    """Return what a loss compares `(B,)`: log-ratios or log-probs, of the whole sequence or per token."""
    loss = PREFERENCE_LOSSES[name]
    scores = sums
    if loss.reference:
        assert ref_logprobs is not None
        scores = preferences.log_ratio(sums, ref_logprobs)
    return preferences.per_token(scores, lengths) if loss.per_token else scores


def pair_loss(name: str, chosen: Tensor, rejected: Tensor, settings: DpoSettings) -> Tensor:
    """Return a loss of pairs `(P,)` by name, with its settings."""
    beta, label_smoothing = beta_of(name, settings), settings.label_smoothing
    match name:
        case "sigmoid" | "sigmoid_norm":
            return preferences.dpo_loss(chosen, rejected, beta=beta, label_smoothing=label_smoothing)
        case "robust":
            return preferences.robust_dpo_loss(chosen, rejected, beta=beta, label_smoothing=label_smoothing)
        case "ipo":
            return preferences.ipo_loss(chosen, rejected, beta=beta)
        case "hinge":
            return preferences.hinge_loss(chosen, rejected, beta=beta)
        case "simpo":
            return preferences.simpo_loss(chosen, rejected, beta=beta, gamma=settings.simpo_gamma)
        case "orpo":
            return preferences.orpo_loss(chosen, rejected, beta=beta)
        case _:
            raise AssertionError(f"{name} is in the table of losses and has no function")


def judged_loss(scores: Tensor, desirable: Tensor, data: PreferenceData, settings: DpoSettings) -> Tensor:
    """Return KTO's loss of each completion `(B,)`, with its settings."""
    assert data.kl is not None
    return preferences.kto_loss(
        scores,
        desirable,
        data.kl.to(scores.device),
        beta=beta_of("kto", settings),
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )


def watched_shares(
    values: Mapping[str, Tensor], ref_logprobs: Tensor | None, desirable: Tensor, data: PreferenceData
) -> dict[str, Tensor]:
    """Return the shares of the step's means over chosen and over rejected completions, and of what pairs say."""
    shares: dict[str, Tensor] = {}
    with_ref = dict(values) if ref_logprobs is None else {**values, "ref_logps": ref_logprobs}
    sides = {"chosen": (desirable, data.num_desirable), "rejected": (~desirable, data.num_undesirable)}
    for side, (of_side, count) in sides.items():
        if count:
            shares |= {f"{name}/{side}": each.detach()[of_side].sum() / count for name, each in with_ref.items()}
    if data.num_pairs:
        margins = (values["rewards"][0::2] - values["rewards"][1::2]).detach()
        shares["rewards/margins"] = margins.sum() / data.num_pairs
        shares["rewards/accuracies"] = (margins > 0).sum() / data.num_pairs
    if data.kl is not None:
        shares["kl"] = data.kl * (len(desirable) / len(data.desirable))
    return shares


@dataclass(slots=True)
class FallWatch:
    """Notices, once, that chosen and rejected completions both lose probability; its fields are its saved state."""

    start: list[float] | None = None  # log-probs per token at the first step, where no reference says them
    change: list[float] = field(default_factory=lambda: [0.0, 0.0])
    told: bool = False

    def notices(self, metrics: Mapping[str, float]) -> bool:
        """Take in a step's metrics and return whether this is the step to say so."""
        if self.told or not {"logps/chosen", "logps/rejected"} <= metrics.keys():
            return False
        now, reference = (
            [metrics.get(f"{name}/{side}", 0.0) / metrics[f"lengths/{side}"] for side in ("chosen", "rejected")]
            for name in ("logps", "ref_logps")
        )
        if "ref_logps/chosen" not in metrics:
            reference = self.start = self.start or now
        changes = zip(self.change, now, reference, strict=True)
        self.change = [SMOOTHING * old + (1 - SMOOTHING) * (new - before) for old, new, before in changes]
        self.told = max(self.change) < -FALL
        return self.told

"""Reward modelling: a score for each completion, learned from preference pairs, and how far it can be trusted.

Floor 5. Bradley-Terry (`algorithms/preferences.bradley_terry_loss`) on prompt trees of two branches. The pairs of some
conversations are held out; the result, and a file beside the weights, say in words whether the scores order them
better than chance, and what else they like.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.algorithms.preferences import bradley_terry_loss
from posttrain.data.chat import drop_overlong
from posttrain.data.held_out import conversation_key
from posttrain.data.loader import Loader
from posttrain.data.pairs import render_preference
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, require_kind
from posttrain.data.trees import TreeBatch
from posttrain.errors import DataError
from posttrain.evals.bias import bias_report, number_of_each
from posttrain.evals.pairs import pair_report, verdict
from posttrain.models.files import REWARD_REPORT
from posttrain.models.lm import LoadedModel, load_model
from posttrain.models.scores import add_score_head, completion_scores, save_reward_model
from posttrain.records import TokenTree
from posttrain.rewards.learned import score_trees
from posttrain.runs.directory import StageRun
from posttrain.runs.durable import write_json
from posttrain.seeds import derive_seed
from posttrain.settings import RmSettings
from posttrain.stages.checks import row_kinds
from posttrain.stages.optimize import LossShare, Updater, steps_of_rows, trained_tokens


def rm(settings: RmSettings, run: StageRun) -> None:
    """Train a reward model on preference pairs, measure it on held-out ones and publish it as the run's artifact."""
    kinds = row_kinds(settings)
    rows = load_rows(settings.data, seed=settings.seed, kinds=kinds)
    require_kind(rows, kinds, "rm")
    margins = {row.id: float(row.columns.get("margin", 0.0)) for row in rows}
    loaded = load_model(settings.model, seed=settings.seed)
    add_score_head(loaded, seed=settings.seed)
    trees, dropped = drop_overlong(
        rows, lambda row: render_preference(row, loaded.tokenizer), max_length=loaded.fit(settings.data.max_length)
    )
    held_out = held_out_rows([row for row in rows if row.id in trees], settings)
    training = [row_id for row_id in trees if row_id not in held_out]
    loader = Loader(training, settings.seed)
    rows_of_step = steps_of_rows(settings, len(training))
    updater = Updater(loaded, settings, num_updates=len(rows_of_step))
    progress = {"num_tokens": 0}
    if run.checkpoint:
        updater.restore(run.checkpoint)
        loader.restore(run.checkpoint.state["loader"])
        progress = dict(run.checkpoint.state["progress"])
    for step in run.steps(len(rows_of_step)):
        row_ids = loader.next(rows_of_step[step - 1])
        batch = [trees[row_id] for row_id in row_ids]
        with run.phase("update"):
            loss_share = score_share([margins[row_id] for row_id in row_ids], settings)
            metrics = updater.update(batch, loss_share, forward=completion_scores, whole_trees=True)
        progress["num_tokens"] += trained_tokens(batch)
        run.log(step, metrics | {"epoch": loader.epoch, **progress})
        run.save(step, lambda: updater.state({"loader": loader.state(), "progress": progress}))
    report = measure(loaded, [trees[row_id] for row_id in sorted(held_out)], settings.max_tokens_per_micro_batch)

    def write(directory: Path) -> None:
        save_reward_model(loaded, directory)
        write_json(directory / REWARD_REPORT, report)

    run.publish_artifact(write)
    run.event("measured", report["verdict"])
    run.event("bias", "\n".join(report["bias"]["findings"]) or report["bias"]["length"])
    counts = {"rows": len(training), "held_out_rows": len(held_out), "dropped_rows": len(dropped)}
    run.finish({**counts, "steps": len(rows_of_step), **progress, **report})


def held_out_rows(rows: Sequence[Row], settings: RmSettings) -> set[str]:
    """Return the ids of the rows of some conversations, at least one, that are only measured on: by hash and seed.

    Prompts that begin alike, such as the turns of one conversation, are held out together.

    Raises DataError where there is no other conversation to train on.
    """
    by_conversation: dict[str, list[str]] = {}
    for row in rows:
        by_conversation.setdefault(conversation_key(row), []).append(row.id)
    if len(by_conversation) < 2:
        raise DataError(f"rm trains on some prompts and measures on others, and there is {len(by_conversation)} in all")
    order = sorted(by_conversation, key=lambda key: derive_seed(settings.seed, "held-out", key))
    count = min(max(1, round(settings.eval_fraction * len(order))), len(order) - 1)
    return {row_id for key in order[:count] for row_id in by_conversation[key]}


def score_share(margins: Sequence[float], settings: RmSettings) -> LossShare:
    """Return the share that a micro-batch of whole pairs has in the mean Bradley-Terry loss of a step's pairs."""
    of_pairs = torch.tensor(margins)

    def share(batch: TreeBatch, scores: Tensor, branches: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen, rejected = scores[0::2], scores[1::2]
        losses = bradley_terry_loss(
            chosen,
            rejected,
            of_pairs[[branch // 2 for branch in branches[0::2]]].to(scores.device),
            label_smoothing=settings.label_smoothing,
            centre_coef=settings.center_rewards_coefficient,
        )
        watched = {
            "accuracy": (chosen > rejected).float(),
            "margin": (chosen - rejected).detach(),
            "mean_reward": (chosen + rejected).detach() / 2,
        }
        return losses.sum() / len(margins), {name: values.sum() / len(margins) for name, values in watched.items()}

    return share


def measure(loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int) -> dict[str, Any]:
    """Return the report of the model's scores on held-out pairs, with its verdict in words, and its biases."""
    loaded.model.eval()
    scores = np.array(score_trees(loaded, trees, max_tokens))
    branches = [branch for tree in trees for branch in tree.branches]
    lengths = np.array([len(branch.ids) for branch in branches])
    texts = [str(loaded.tokenizer.decode(list(branch.ids), skip_special_tokens=True)) for branch in branches]
    prompts = np.repeat(number_of_each([tree.prompt_ids for tree in trees]), 2)
    report = pair_report(scores[0::2], scores[1::2], lengths[0::2], lengths[1::2])
    chosen = np.tile([1.0, 0.0], len(trees))
    return {"verdict": verdict(report), **report, "bias": bias_report(scores, lengths, texts, prompts, chosen)}

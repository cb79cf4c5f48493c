"""The shared update: schedules by hand, micro-batches that change nothing, faults that change nothing either."""

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import TreeBatch
from posttrain.errors import NonFiniteError
from posttrain.models.lm import LoadedModel, load_model
from posttrain.models.logprobs import TokenLogprobs, completion_logprobs
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings, OptimizedStageSettings
from posttrain.stages.optimize import (
    MAX_SKIPPED_IN_A_ROW,
    Updater,
    evaluate_logprobs,
    learning_rate_at,
    token_mean_loss,
)

TREES = [
    TokenTree((5, 6, 7), (Branch((8, 9, 10, 11), (1, 1, 0, 1)), Branch((12,), (1,)))),
    TokenTree((20,), (Branch((21, 22, 23), (1, 1, 1)),)),
    TokenTree((30, 31), (Branch((32, 33), (1, 1)), Branch((34, 35, 36, 37, 38), (1,) * 5))),
]


def fresh(directory: str, **options: object) -> LoadedModel:
    settings = {"name_or_path": directory, "dtype": "float32", "device": "cpu", **options}
    return load_model(ModelSettings.model_validate(settings), seed=1)


def weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rates_by_hand(schedule: str, expected: list[float]) -> None:
    settings = OptimizedStageSettings.model_validate(
        {"learning_rate": 1.0, "warmup_steps": 2, "lr_scheduler_type": schedule}
    )
    assert [learning_rate_at(update, 6, settings) for update in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_micro_batches_change_nothing(model_directory: str, layout: str) -> None:
    found = []
    for budget in (4096, 8, 1):
        loaded = fresh(model_directory, layout=layout)
        settings = OptimizedStageSettings(max_tokens_per_micro_batch=budget)
        totals = Updater(loaded, settings, 1)._accumulate(TREES, token_mean_loss(TREES), completion_logprobs, False)
        found.append((totals, {name: p.grad for name, p in loaded.model.named_parameters()}))
    for totals, gradients in found[1:]:
        assert totals == pytest.approx(found[0][0], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_logprobs_come_in_the_order_of_the_branches_whatever_the_budget(model_directory: str, layout: str) -> None:
    loaded = fresh(model_directory, layout=layout)
    alone = [
        evaluate_logprobs(loaded, [TokenTree(tree.prompt_ids, (branch,))], 4096, temperature=0.7)[0]
        for tree in TREES
        for branch in tree.branches
    ]
    for budget in (4096, 8, 1):
        rows = evaluate_logprobs(loaded, TREES, budget, temperature=0.7)
        for row, expected in zip(rows, alone, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


def test_a_mean_of_micro_batch_means_would_be_seen(model_directory: str) -> None:
    """Negative control of the test above: the classic wrong denominator gives another gradient."""

    def wrong(batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        mask = batch.completion_mask
        return -(tokens.logprobs * mask).sum() / mask.sum() / 3, {}

    norms = []
    for loss_share in (token_mean_loss(TREES), wrong):
        settings = OptimizedStageSettings(max_tokens_per_micro_batch=8)
        norms.append(Updater(fresh(model_directory), settings, 1).update(TREES, loss_share)["grad_norm"])
    assert norms[1] != pytest.approx(norms[0], rel=1e-2)


def test_loss_is_the_mean_over_trained_tokens(model_directory: str) -> None:
    loaded = fresh(model_directory)
    rows = evaluate_logprobs(loaded, TREES, 4096, temperature=1.0)
    masks = [branch.mask for tree in TREES for branch in tree.branches]
    kept = [v for row, mask in zip(rows, masks, strict=True) for v, keep in zip(row, mask, strict=True) if keep]
    metrics = Updater(loaded, OptimizedStageSettings(), 1).update(TREES, token_mean_loss(TREES))
    assert len(kept) == 14
    assert metrics["loss"] == pytest.approx(-sum(kept) / 14, rel=1e-5)
    assert [len(row) for row in rows] == [4, 1, 3, 2, 5]


def breaking(value: float) -> Callable[..., tuple[Tensor, Mapping[str, Tensor]]]:
    def share(batch: TreeBatch, tokens: TokenLogprobs, branches: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return tokens.logprobs.sum() * value, {}

    return share


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(model_directory: str, value: float) -> None:
    loaded = fresh(model_directory)
    before = weights(loaded)
    updater = Updater(loaded, OptimizedStageSettings(learning_rate=0.1), 10)
    for _ in range(MAX_SKIPPED_IN_A_ROW):
        assert updater.update(TREES, breaking(value))["skipped_update"] == 1.0
    with pytest.raises(NonFiniteError, match="not finite 4 times in a row"):
        updater.update(TREES, breaking(value))
    assert all(torch.equal(weight, before[name]) for name, weight in weights(loaded).items())


def test_a_finite_update_in_between_starts_the_count_anew(model_directory: str) -> None:
    updater = Updater(fresh(model_directory), OptimizedStageSettings(), 10)
    for _ in range(3):
        for _ in range(MAX_SKIPPED_IN_A_ROW):
            updater.update(TREES, breaking(math.nan))
        assert updater.update(TREES, token_mean_loss(TREES))["skipped_update"] == 0.0


def test_nothing_to_train_on_takes_no_step(model_directory: str) -> None:
    loaded = fresh(model_directory)
    updater = Updater(loaded, OptimizedStageSettings(learning_rate=0.1), 10)
    updater.update(TREES, token_mean_loss(TREES))
    before = weights(loaded)
    metrics = updater.update([], token_mean_loss([]))
    assert metrics["loss"] == 0.0
    assert metrics["grad_norm"] == 0.0
    assert all(torch.equal(weight, before[name]) for name, weight in weights(loaded).items())


def test_only_the_adapter_is_trained(model_directory: str) -> None:
    loaded = fresh(model_directory, lora_r=4)
    before = weights(loaded)
    Updater(loaded, OptimizedStageSettings(learning_rate=0.1), 1).update(TREES, token_mean_loss(TREES))
    changed = {name for name, weight in weights(loaded).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_matrices_decay_and_vectors_do_not(model_directory: str) -> None:
    loaded = fresh(model_directory)
    settings = OptimizedStageSettings(learning_rate=1.0, weight_decay=0.5)
    groups = [group for optimizer in Updater(loaded, settings, 1)._optimizers for group in optimizer.param_groups]
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.5) for parameter in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(loaded.model.parameters()))

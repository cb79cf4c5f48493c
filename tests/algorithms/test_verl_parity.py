"""PPO's arithmetic beside verl's on the same tensors, where verl is installed: its values and its gradients."""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posttrain.algorithms.controllers import KlController
from posttrain.algorithms.losses import clipped_policy_loss, clipped_value_loss
from posttrain.algorithms.returns import gae, token_rewards, whiten
from posttrain.algorithms.tokens import token_mean

B, T = 6, 9
LENGTHS = torch.tensor([9, 4, 1, 7, 2, 9])
MASK = torch.arange(T) < LENGTHS[:, None]


@pytest.fixture(scope="module")
def verl() -> ModuleType:
    return pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = ("logprobs", "old", "ref", "values", "old_values", "rewards")
    return {name: torch.randn(B, T, dtype=torch.float64) for name in names}


def test_rewards_with_kl(verl: ModuleType, tensors: dict[str, torch.Tensor]) -> None:
    scores = torch.randn(B, dtype=torch.float64)
    last = torch.nn.functional.one_hot(LENGTHS - 1, T) * scores[:, None]
    expected = verl.compute_rewards(last, tensors["logprobs"], tensors["ref"], 0.3) * MASK
    found = token_rewards(scores, MASK, logprobs=tensors["logprobs"], ref_logprobs=tensors["ref"], kl_coef=0.3)
    assert_close(found, expected)


def test_gae_and_whitening(verl: ModuleType, tensors: dict[str, torch.Tensor]) -> None:
    expected, returns = verl.compute_gae_advantage_return(
        tensors["rewards"], tensors["values"], MASK.double(), gamma=0.97, lam=0.9
    )
    advantages, found = gae(tensors["rewards"], tensors["values"], MASK, gamma=0.97, gae_lambda=0.9)
    # verl divides by the root of the variance + 1e-8.
    assert_close(whiten(advantages, MASK), expected * MASK, rtol=1e-6, atol=1e-7)
    assert_close(found, returns * MASK)


def test_policy_loss_with_dual_clip(verl: ModuleType, tensors: dict[str, torch.Tensor]) -> None:
    ours, theirs = (tensors["logprobs"].clone().requires_grad_() for _ in range(2))
    advantages = tensors["rewards"]
    loss, clipped, _, dual = verl.compute_policy_loss(
        tensors["old"], theirs, advantages, MASK.double(), cliprange_low=0.2, cliprange_high=0.28, clip_ratio_c=3.0
    )
    found = clipped_policy_loss(
        ours, tensors["old"], advantages, MASK, epsilon_low=0.2, epsilon_high=0.28, dual_clip=3.0
    )
    count = int(MASK.sum())
    of_ours = token_mean(found.per_token, MASK, num_tokens=count)
    loss.backward()
    of_ours.backward()
    assert_close(of_ours, loss)
    assert_close(ours.grad, theirs.grad)
    held = (found.clipped_low | found.clipped_high).sum() / count
    assert held.item() == pytest.approx(clipped.item())
    assert (found.clipped_dual.sum() / count).item() == pytest.approx(dual.item())
    assert dual > 0
    assert clipped > 0


def test_value_loss(verl: ModuleType, tensors: dict[str, torch.Tensor]) -> None:
    ours, theirs = (tensors["values"].clone().requires_grad_() for _ in range(2))
    loss, clipped = verl.compute_value_loss(theirs, tensors["rewards"], tensors["old_values"], MASK.double(), 0.2)
    found = clipped_value_loss(ours, tensors["old_values"], tensors["rewards"], MASK, clip=0.2)
    of_ours = token_mean(found.per_token, MASK, num_tokens=int(MASK.sum()))
    loss.backward()
    of_ours.backward()
    assert_close(of_ours, loss)
    assert_close(ours.grad, theirs.grad)
    assert (found.clipped.sum() / MASK.sum()).item() == pytest.approx(clipped.item())


def test_kl_controller(verl: ModuleType) -> None:
    theirs = verl.AdaptiveKLController(0.1, 6.0, 1000)
    ours = KlController(0.1, 6.0, 1000)
    for kl in np.random.default_rng(0).uniform(-5, 30, size=50):
        theirs.update(kl, 64)
        ours = ours.after(float(kl), 64)
        assert ours.coef == pytest.approx(theirs.value)

"""Preference losses: numbers by hand, identities, finite differences."""

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

CHOSEN = torch.tensor([1.5, -0.3, 0.0], dtype=torch.float64)
REJECTED = torch.tensor([-0.5, 0.7, 0.0], dtype=torch.float64)
LOGPROBS = torch.tensor([-0.4, -1.3, -0.05], dtype=torch.float64)  # per token, so below 0
WORSE = torch.tensor([-0.9, -0.6, -2.0], dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def equal(found: Tensor, expected: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-6, atol=1e-9)


# --- by hand ---------------------------------------------------------------------------------------------------


def test_sequence_logprobs_by_hand(preferences: ModuleType) -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, math.nan, -math.inf]])
    mask = torch.tensor([[True, False, True], [True, False, False]])
    sums, lengths = preferences.sequence_logprobs(logprobs, mask)
    assert equal(sums, [-5.0, -3.0])
    assert lengths.tolist() == [2, 1]
    assert equal(preferences.per_token(sums, lengths), [-2.5, -3.0])
    assert preferences.per_token(torch.tensor([0.0]), torch.tensor([0])).item() == 0.0


def test_log_ratio_has_a_gradient_for_the_policy_alone(preferences: ModuleType) -> None:
    policy, reference = (torch.tensor([-2.0], requires_grad=True) for _ in range(2))
    ratio = preferences.log_ratio(policy, reference - 1)
    ratio.sum().backward()
    assert ratio.item() == 1.0
    assert policy.grad is not None
    assert policy.grad.item() == 1.0
    assert reference.grad is None


def test_log_ratio_subtracts_in_float32(preferences: ModuleType) -> None:
    """In bfloat16, 1000 and 1001 are the same number."""
    ratio = preferences.log_ratio(torch.tensor([3.25], dtype=torch.bfloat16), torch.tensor([-1000.5]))
    assert ratio.item() == 1003.75


def test_dpo_by_hand(preferences: ModuleType) -> None:
    found = preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5)
    assert equal(found, [-log_sigmoid(1.0), -log_sigmoid(-0.5), math.log(2)])


def test_conservative_dpo_by_hand(preferences: ModuleType) -> None:
    found = preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.1)
    first = -0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0)
    second = -0.9 * log_sigmoid(-0.5) - 0.1 * log_sigmoid(0.5)
    assert equal(found, [first, second, math.log(2)])


def test_robust_dpo_by_hand(preferences: ModuleType) -> None:
    found = preferences.robust_dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.1)
    first = (-0.9 * log_sigmoid(1.0) + 0.1 * log_sigmoid(-1.0)) / 0.8
    second = (-0.9 * log_sigmoid(-0.5) + 0.1 * log_sigmoid(0.5)) / 0.8
    assert equal(found, [first, second, math.log(2)])


def test_ipo_by_hand(preferences: ModuleType) -> None:
    assert equal(preferences.ipo_loss(CHOSEN, REJECTED, beta=0.25), [0.0, 9.0, 4.0])


def test_hinge_by_hand(preferences: ModuleType) -> None:
    assert equal(preferences.hinge_loss(CHOSEN, REJECTED, beta=1.0), [0.0, 2.0, 1.0])


def test_simpo_by_hand(preferences: ModuleType) -> None:
    found = preferences.simpo_loss(LOGPROBS, WORSE, beta=2.0, gamma=0.5)
    assert equal(found, [-log_sigmoid(0.5), -log_sigmoid(-1.9), -log_sigmoid(3.4)])


def test_orpo_by_hand(preferences: ModuleType) -> None:
    """Of probabilities 1/2 and 1/5: odds 1 and 1/4, so the ratio is 4."""
    half, fifth = (torch.tensor([p], dtype=torch.float64).log() for p in (0.5, 0.2))
    found = preferences.orpo_loss(half, fifth, beta=0.1)
    assert equal(found, [math.log(2) - 0.1 * log_sigmoid(math.log(4))])
    found = preferences.orpo_loss(fifth, torch.tensor([0.8], dtype=torch.float64).log(), beta=0.1)
    assert equal(found, [math.log(5) - 0.1 * log_sigmoid(math.log(0.25 / 4))])


def test_orpo_stays_finite_at_the_ends(preferences: ModuleType) -> None:
    chosen = torch.tensor([0.0, -1e-9, -90.0, -math.log(2)], requires_grad=True)
    rejected = torch.tensor([-200.0, 0.0, -1e-9, -math.log(2)], requires_grad=True)
    loss = preferences.orpo_loss(chosen, rejected, beta=1.0)
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert all(bool(values.isfinite().all()) for values in (loss, chosen.grad, rejected.grad))


def test_kto_by_hand(preferences: ModuleType) -> None:
    ratios, desirable = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, False])
    found = preferences.kto_loss(
        ratios, desirable, torch.tensor(0.5), beta=2.0, desirable_weight=3.0, undesirable_weight=0.5
    )

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert equal(found, [3 * (1 - sigmoid(3.0)), 0.5 * (1 - sigmoid(-3.0)), 0.5 * (1 - sigmoid(3.0))])


def test_kto_kl_is_a_mean_from_0_up(preferences: ModuleType) -> None:
    assert preferences.kto_kl(torch.tensor([1.0, -0.5])).item() == 0.25
    assert preferences.kto_kl(torch.tensor([1.0, -3.0])).item() == 0.0
    assert not preferences.kto_kl(torch.tensor([1.0], requires_grad=True)).requires_grad


def test_bradley_terry_by_hand(preferences: ModuleType) -> None:
    margins = torch.tensor([1.0, 0.0, 0.5])
    found = preferences.bradley_terry_loss(CHOSEN, REJECTED, margins)
    assert equal(found, [-log_sigmoid(1.0), -log_sigmoid(-1.0), -log_sigmoid(-0.5)])
    found = preferences.bradley_terry_loss(CHOSEN, REJECTED, centre_coef=0.1)
    assert equal(found, [-log_sigmoid(2.0) + 0.1, -log_sigmoid(-1.0) + 0.016, math.log(2)])
    found = preferences.bradley_terry_loss(CHOSEN, REJECTED, margins, label_smoothing=0.2)
    assert equal(found[:1], [-0.8 * log_sigmoid(1.0) - 0.2 * log_sigmoid(-1.0)])


# --- identities ------------------------------------------------------------------------------------------------


def test_policy_equal_to_the_reference_costs_ln_2(preferences: ModuleType) -> None:
    zeros = torch.zeros(4)
    for label_smoothing in (0.0, 0.3):
        for loss in (preferences.dpo_loss, preferences.robust_dpo_loss):
            assert equal(loss(zeros, zeros, beta=0.1, label_smoothing=label_smoothing), [math.log(2)] * 4)


def test_smoothing_of_0_is_the_plain_loss_and_more_is_not(preferences: ModuleType) -> None:
    plain = preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5)
    assert torch.equal(preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.0), plain)
    assert torch.equal(preferences.robust_dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.0), plain)
    assert not torch.allclose(preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.1), plain)
    scored = preferences.bradley_terry_loss(CHOSEN, REJECTED)
    assert not torch.allclose(preferences.bradley_terry_loss(CHOSEN, REJECTED, label_smoothing=0.1), scored)


def test_robust_dpo_is_unbiased_under_flipped_labels(preferences: ModuleType) -> None:
    """What the division by 1 - 2e is for: the mean over right and flipped labels is the loss of the right ones."""
    as_given = preferences.robust_dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.2)
    flipped = preferences.robust_dpo_loss(REJECTED, CHOSEN, beta=0.5, label_smoothing=0.2)
    clean = preferences.dpo_loss(CHOSEN, REJECTED, beta=0.5)
    torch.testing.assert_close(0.8 * as_given + 0.2 * flipped, clean)


def test_robust_dpo_refuses_half_of_the_labels_flipped(preferences: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"below 0\.5, not 0\.5"):
        preferences.robust_dpo_loss(CHOSEN, REJECTED, beta=0.5, label_smoothing=0.5)


def test_ipo_stops_at_its_target_where_dpo_goes_on(preferences: ModuleType) -> None:
    chosen = torch.tensor([5.0], requires_grad=True)
    preferences.ipo_loss(chosen, torch.tensor([0.0]), beta=0.1).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == 0.0


def test_a_large_difference_is_finite(preferences: ModuleType) -> None:
    chosen, rejected = torch.tensor([-1e4, 1e4], requires_grad=True), torch.tensor([1e4, -1e4])
    losses = preferences.dpo_loss(chosen, rejected, beta=1.0, label_smoothing=0.1)
    losses.sum().backward()
    assert bool(losses.isfinite().all())
    assert chosen.grad is not None
    assert bool(chosen.grad.isfinite().all())


LOSSES = {
    "dpo": lambda p, c, r: p.dpo_loss(c, r, beta=0.3, label_smoothing=0.1),
    "robust": lambda p, c, r: p.robust_dpo_loss(c, r, beta=0.3, label_smoothing=0.1),
    "ipo": lambda p, c, r: p.ipo_loss(c, r, beta=0.1),
    "hinge": lambda p, c, r: p.hinge_loss(c, r, beta=0.3),
    "simpo": lambda p, c, r: p.simpo_loss(c, r, beta=2.0, gamma=0.4),
    "orpo": lambda p, c, r: p.orpo_loss(c, r, beta=0.4),
    "kto": lambda p, c, r: p.kto_loss(
        torch.cat([c, r]), torch.tensor([True] * 3 + [False] * 3), torch.tensor(0.1), beta=0.7
    ),
    "bradley_terry": lambda p, c, r: p.bradley_terry_loss(
        c, r, torch.tensor([0.2, 0.0, 1.0]), label_smoothing=0.1, centre_coef=0.05
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_pass_finite_differences(preferences: ModuleType, name: str) -> None:
    inputs = LOGPROBS.clone().requires_grad_(), WORSE.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: LOSSES[name](preferences, c, r), inputs)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "bradley_terry"])
def test_each_loss_pulls_chosen_up_and_rejected_down(preferences: ModuleType, name: str) -> None:
    chosen, rejected = LOGPROBS.clone().requires_grad_(), WORSE.clone().requires_grad_()
    LOSSES[name](preferences, chosen, rejected).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert bool((chosen.grad < 0).all())
    assert bool((rejected.grad > 0).all())


def test_arguments_are_not_changed(preferences: ModuleType) -> None:
    before = CHOSEN.clone(), REJECTED.clone(), LOGPROBS.clone()
    for loss in LOSSES.values():
        loss(preferences, CHOSEN.clamp(max=-0.1), REJECTED.clamp(max=-0.1))
    preferences.sequence_logprobs(LOGPROBS[None], torch.tensor([[True, False, True]]))
    assert all(torch.equal(now, then) for now, then in zip((CHOSEN, REJECTED, LOGPROBS), before, strict=True))

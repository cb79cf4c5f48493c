"""Losses and their gradients beside TRL's own functions, on the same log-probs, scores and advantages.

Where the two mean different things, the test's docstring says what differs and the test states the exact relation;
ARCHITECTURE.md has them in a table. `tests/stages/test_trl_parity.py` compares whole updates.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.tokens import aggregate, k2, k3

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(find_spec("trl") is None, reason='trl is not installed: pip install -e ".[peers]"'),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]

GENERATOR = torch.Generator().manual_seed(0)
LOGPROBS = -torch.rand(8, 5, generator=GENERATOR, dtype=torch.float64)  # of tokens; chosen rows, then rejected ones
MASK = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5, 5, 1])[:, None]
REFERENCE = -3 * torch.rand(8, generator=GENERATOR, dtype=torch.float64)  # of sequences
SUMS = (LOGPROBS * MASK).sum(-1)
OLD = LOGPROBS + 1.2 * torch.rand(8, 5, generator=GENERATOR, dtype=torch.float64) - 0.6
REFERENCE_TOKENS = LOGPROBS + 3 * torch.rand(8, 5, generator=GENERATOR, dtype=torch.float64) - 1.5
ADVANTAGES = torch.tensor([1.5, -0.5, 0.0, -1.0, 0.7, -2.0, 1.0, 0.3], dtype=torch.float64)

Loss = Callable[..., Tensor]
ACCELERATOR = SimpleNamespace(
    device="cpu", num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
)


def assert_same(found: Loss, expected: Loss, *inputs: Tensor, rtol: float = 1e-6) -> None:
    """Compare two losses of the inputs, and their gradients."""
    results = []
    for loss in (found, expected):
        leaves = [each.clone().requires_grad_() for each in inputs]
        value = loss(*leaves)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    assert all(bool(gradient.any()) for gradient in results[1][1:])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=rtol, atol=rtol)


def as_trainer(**fields: Any) -> SimpleNamespace:
    """Return what a trainer's method reads of its trainer."""
    metrics = defaultdict(lambda: defaultdict(list))
    shared = {"accelerator": ACCELERATOR, "_metrics": metrics, "_total_train_tokens": 0, "_tp_size": 1}
    return SimpleNamespace(**shared, aux_loss_enabled=False, model=SimpleNamespace(training=True), **fields)


def sequences(preferences: ModuleType, logprobs: Tensor, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
    """Return the log-ratios of chosen and of rejected sequences."""
    sums, lengths = preferences.sequence_logprobs(logprobs, MASK)
    ratios = preferences.log_ratio(sums, REFERENCE)
    chosen, rejected = (preferences.per_token(ratios, lengths) if per_token else ratios).chunk(2)
    return chosen, rejected


# --- pairs -----------------------------------------------------------------------------------------------------


def trl_dpo(logprobs: Tensor, losses: Sequence[str], weights: Sequence[float] = (1.0,), **options: float) -> Tensor:
    """Return the loss of TRL's DPOTrainer for the log-probs, the reference and the mask above."""
    from trl import DPOTrainer

    nothing = torch.zeros_like(logprobs)
    output = SimpleNamespace(log_probs=logprobs * MASK, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    with_prompt = torch.cat([torch.zeros(len(MASK), 1, dtype=torch.long), MASK.long()], dim=1)  # of one token
    trainer = as_trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=losses,
        loss_weights=weights,
        use_weighting=False,
        **options,
    )
    inputs = {
        "input_ids": torch.zeros_like(with_prompt),
        "attention_mask": torch.ones_like(with_prompt),
        "completion_mask": with_prompt,
        "ref_chosen_logps": REFERENCE[:4],
        "ref_rejected_logps": REFERENCE[4:],
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: output, inputs, False)


PAIR_LOSSES = {
    "sigmoid": lambda p, chosen, rejected: p.dpo_loss(chosen, rejected, beta=0.3),
    "sigmoid_norm": lambda p, chosen, rejected: p.dpo_loss(chosen, rejected, beta=0.3),
    "robust": lambda p, chosen, rejected: p.robust_dpo_loss(chosen, rejected, beta=0.3, label_smoothing=0.1),
    "ipo": lambda p, chosen, rejected: p.ipo_loss(chosen, rejected, beta=0.3),
    "hinge": lambda p, chosen, rejected: p.hinge_loss(chosen, rejected, beta=0.3),
}


def our_dpo(preferences: ModuleType, name: str, logprobs: Tensor) -> Tensor:
    pair = sequences(preferences, logprobs, per_token=name in ("sigmoid_norm", "ipo"))
    return PAIR_LOSSES[name](preferences, *pair).mean()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_dpo_losses_are_those_of_trl(preferences: ModuleType, name: str) -> None:
    smoothing = 0.1 if name == "robust" else 0.0

    def expected(logprobs: Tensor, beta: float = 0.3) -> Tensor:
        return trl_dpo(logprobs, [name], beta=beta, label_smoothing=smoothing)

    def found(logprobs: Tensor) -> Tensor:
        return our_dpo(preferences, name, logprobs)

    assert_same(found, expected, LOGPROBS)
    with pytest.raises(AssertionError):
        assert_same(found, lambda logprobs: expected(logprobs, beta=0.3003), LOGPROBS)


def test_losses_add_up_by_weight_with_the_sft_term_as_in_trl(preferences: ModuleType, losses: ModuleType) -> None:
    """The sft term is the mean over the chosen tokens of what one forward of TRL holds; ours is that of the step."""

    def found(logprobs: Tensor) -> Tensor:
        pairs = our_dpo(preferences, "sigmoid", logprobs) + 0.5 * our_dpo(preferences, "ipo", logprobs)
        return pairs + 0.2 * losses.sft_loss(logprobs[:4], MASK[:4], num_tokens=int(MASK[:4].sum()))

    def expected(logprobs: Tensor) -> Tensor:
        return trl_dpo(logprobs, ["sigmoid", "ipo", "sft"], [1.0, 0.5, 0.2], beta=0.3, label_smoothing=0.0)

    assert_same(found, expected, LOGPROBS)


def test_smoothed_dpo_is_a_sum_of_two_of_trls(preferences: ModuleType) -> None:
    """DPOTrainer ignores `label_smoothing` in sigmoid and reads it in robust; ours makes sigmoid conservative DPO.

    With L a pair's loss and L' that of its swap, ours is (1 - e) L + e L', and robust ((1 - e) L - e L') / (1 - 2e).
    """
    e = 0.1

    def found(logprobs: Tensor) -> Tensor:
        return preferences.dpo_loss(*sequences(preferences, logprobs), beta=0.3, label_smoothing=e).mean()

    def expected(logprobs: Tensor) -> Tensor:
        return trl_dpo(logprobs, ["sigmoid", "robust"], [2 * (1 - e), 2 * e - 1], beta=0.3, label_smoothing=e)

    assert_same(found, expected, LOGPROBS)
    plain = trl_dpo(LOGPROBS, ["sigmoid"], beta=0.3, label_smoothing=0.0)
    assert torch.equal(trl_dpo(LOGPROBS, ["sigmoid"], beta=0.3, label_smoothing=e), plain)


def trl_cpo(loss_type: str, chosen: Tensor, rejected: Tensor, label_smoothing: float) -> Tensor:
    from trl.experimental.cpo import CPOTrainer

    options = {"beta": 2.0, "simpo_gamma": 0.7, "alpha": 0.0, "label_smoothing": label_smoothing}
    return CPOTrainer.cpo_loss(as_trainer(loss_type=loss_type, **options), chosen, rejected)[0].mean()


def test_simpo_is_that_of_trl(preferences: ModuleType) -> None:
    """TRL smooths the labels of SimPO too, which the paper does not; ours has no such setting."""

    def expected(chosen: Tensor, rejected: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return trl_cpo("simpo", chosen, rejected, label_smoothing)

    def found(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preferences.simpo_loss(chosen, rejected, beta=2.0, gamma=0.7).mean()

    assert_same(found, expected, SUMS[:4], SUMS[4:])
    with pytest.raises(AssertionError):
        assert_same(found, lambda *pair: expected(*pair, label_smoothing=0.01), SUMS[:4], SUMS[4:])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_conservative_dpo_is_that_of_trls_cpo(preferences: ModuleType, label_smoothing: float) -> None:
    """CPOTrainer smooths where DPOTrainer does not; it compares log-probs without a reference, by the same formula."""

    def found(chosen: Tensor, rejected: Tensor) -> Tensor:
        return preferences.dpo_loss(chosen, rejected, beta=2.0, label_smoothing=label_smoothing).mean()

    assert_same(found, lambda *pair: trl_cpo("sigmoid", *pair, label_smoothing), SUMS[:4], SUMS[4:])


def test_orpos_odds_term_is_that_of_trl(preferences: ModuleType) -> None:
    """Alone: the likelihood beside it is a mean over prompts and completions in TRL, over each completion in ours."""
    from trl.experimental.orpo import ORPOTrainer

    def found(chosen: Tensor, rejected: Tensor) -> Tensor:
        return (preferences.orpo_loss(chosen, rejected, beta=0.2) + chosen).mean()

    def expected(chosen: Tensor, rejected: Tensor) -> Tensor:
        return -ORPOTrainer.odds_ratio_loss(as_trainer(beta=0.2), chosen, rejected)[0].mean()

    assert_same(found, expected, SUMS[:4] / 5, SUMS[4:] / 5, rtol=1e-5)  # TRL casts to float32
    with pytest.raises(AssertionError):
        assert_same(lambda *pair: found(*pair) * 1.001, expected, SUMS[:4], SUMS[4:], rtol=1e-5)


def test_kto_is_that_of_trl(preferences: ModuleType) -> None:
    """Given the same log-probs of mismatched completions; which ones those are is the stage's part."""
    from trl import KTOTrainer

    labels = torch.tensor([True, False, True, True, False, False, True, False])
    mismatched, reference_kl = SUMS.flip(0) + 2, REFERENCE.flip(0)
    weights = {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5}

    def found(logprobs: Tensor) -> Tensor:
        sums, _ = preferences.sequence_logprobs(logprobs, MASK)
        kl = preferences.kto_kl(mismatched - reference_kl)
        assert kl > 0.1
        return preferences.kto_loss(preferences.log_ratio(sums, REFERENCE), labels, kl, **weights).mean()

    def expected(logprobs: Tensor, desirable_weight: float = 1.5) -> Tensor:
        nothing = torch.zeros_like(logprobs)
        output = SimpleNamespace(log_probs=logprobs * MASK, entropy=nothing, mean_logits=nothing)
        trainer = as_trainer(
            calculate_KL=True,
            precompute_ref_logps=True,
            loss_type="kto",
            _compute_kl_logps=lambda model, batch: mismatched,
            **weights | {"desirable_weight": desirable_weight},
        )
        with_prompt = torch.cat([torch.zeros(len(MASK), 1, dtype=torch.long), MASK.long()], dim=1)
        inputs = {"input_ids": with_prompt, "attention_mask": with_prompt, "completion_mask": with_prompt}
        given = {"label": labels, "ref_logps": REFERENCE, "ref_KL_logps": reference_kl}
        return KTOTrainer._compute_loss(trainer, lambda **_: output, inputs | given, False)

    assert_same(found, expected, LOGPROBS)
    with pytest.raises(AssertionError):
        assert_same(found, lambda logprobs: expected(logprobs, desirable_weight=1.501), LOGPROBS)


def test_bradley_terry_is_that_of_trl(preferences: ModuleType) -> None:
    """Without label smoothing, which RewardTrainer does not have."""
    from trl import RewardTrainer

    margins = torch.tensor([0.5, 0.0, 1.0, 2.0], dtype=torch.float64)

    def found(scores: Tensor, centre_coef: float = 0.01) -> Tensor:
        return preferences.bradley_terry_loss(*scores.chunk(2), margins, centre_coef=centre_coef).mean()

    def expected(scores: Tensor) -> Tensor:
        trainer = as_trainer(args=SimpleNamespace(center_rewards_coefficient=0.01))
        inputs = {"margin": margins, "attention_mask": torch.ones(1)}
        output = SimpleNamespace(logits=scores[:, None])
        return RewardTrainer.compute_loss(trainer, lambda **_: output, inputs)

    assert_same(found, expected, SUMS)
    with pytest.raises(AssertionError):
        assert_same(lambda scores: found(scores, centre_coef=0.0101), expected, SUMS)


# --- policies --------------------------------------------------------------------------------------------------

AGGREGATIONS = {"dapo": "token_mean", "grpo": "sequence_mean", "dr_grpo": "constant_length"}


def trl_grpo(
    logprobs: Tensor,
    loss_type: str,
    *,
    mask: Tensor = MASK,
    reference: Tensor | None = None,
    old: Tensor | None = OLD,
    ratio_in_kl: bool = False,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
) -> Tensor:
    """Return the loss of TRL's GRPOTrainer for the advantages above, with beta 0.1 where there is a reference."""
    from trl import GRPOTrainer

    trainer = as_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        args=SimpleNamespace(use_bias_correction_kl=ratio_in_kl, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        beta=0.0 if reference is None else 0.1,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=7,
        _entropy_bonus_enabled=False,
    )
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": tokens,
        "prompt_mask": tokens,
        "completion_ids": tokens,
        "completion_mask": mask.long(),
        "advantages": ADVANTAGES,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def our_grpo(
    losses: ModuleType,
    logprobs: Tensor,
    loss_type: str,
    *,
    mask: Tensor = MASK,
    reference: Tensor | None = None,
    old: Tensor | None = OLD,
    penalty: Callable[[Tensor, Tensor], Tensor] = k3,
) -> Tensor:
    policy = losses.clipped_policy_loss(logprobs, old, ADVANTAGES, mask, epsilon_low=0.2, epsilon_high=0.28)
    per_token = policy.per_token if reference is None else policy.per_token + 0.1 * penalty(logprobs, reference)
    counts = {"num_sequences": int(mask.any(-1).sum()), "num_tokens": int(mask.sum()), "max_length": 7}
    return aggregate(per_token, mask, AGGREGATIONS[loss_type], **counts)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
@pytest.mark.parametrize("old", [None, OLD], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("reference", [None, REFERENCE_TOKENS], ids=["", "kl"])
def test_grpo_is_that_of_trl(losses: ModuleType, loss_type: str, old: Tensor | None, reference: Tensor | None) -> None:
    """With `use_bias_correction_kl` off, and every k3 below our bound of 10: TRL has none."""

    def found(logprobs: Tensor) -> Tensor:
        return our_grpo(losses, logprobs, loss_type, old=old, reference=reference)

    def expected(logprobs: Tensor, **options: float) -> Tensor:
        return trl_grpo(logprobs, loss_type, old=old, reference=reference, **options)

    assert_same(found, expected, LOGPROBS)
    if old is not None:  # both sides of the clip bite, and each is noticed
        with pytest.raises(AssertionError):
            assert_same(found, lambda logprobs: expected(logprobs, epsilon_low=0.201), LOGPROBS)
        with pytest.raises(AssertionError):
            assert_same(found, lambda logprobs: expected(logprobs, epsilon_high=0.281), LOGPROBS)


def test_trls_default_kl_penalty_pulls_like_k2(losses: ModuleType) -> None:
    """By default TRL 1.16 multiplies k3 by the ratio: on-policy the same value, but the gradient of k2.

    Which is that of KL(policy || reference) (DeepSeek-V3.2, arXiv 2512.02556). Ours is GRPO's k3, with the gradient of
    KL(reference || policy).
    """
    options = {"old": None, "reference": REFERENCE_TOKENS}

    def gradient(loss: Tensor, logprobs: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logprobs)[0]

    logprobs = LOGPROBS.clone().requires_grad_()
    expected = trl_grpo(logprobs, "dapo", ratio_in_kl=True, **options)
    torch.testing.assert_close(our_grpo(losses, logprobs, "dapo", **options), expected)
    with_k2 = gradient(our_grpo(losses, logprobs, "dapo", penalty=k2, **options), logprobs)
    torch.testing.assert_close(with_k2, gradient(expected, logprobs))
    with_k3 = gradient(our_grpo(losses, logprobs, "dapo", **options), logprobs)
    assert (with_k3 - with_k2).norm() > 0.01 * with_k2.norm()


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_a_masked_sequence_stays_in_trls_denominator(losses: ModuleType, loss_type: str) -> None:
    """TRL's means over sequences count those that keep no token (truncated ones, say); ours leave them out."""
    mask = MASK.clone()
    mask[2:5] = False
    factor = 1.0 if loss_type == "dapo" else 5 / 8

    def found(logprobs: Tensor) -> Tensor:
        return factor * our_grpo(losses, logprobs, loss_type, mask=mask)

    assert_same(found, lambda logprobs: trl_grpo(logprobs, loss_type, mask=mask), LOGPROBS)


def test_an_outlier_of_the_kl_penalty_is_cut_off_here_alone(losses: ModuleType) -> None:
    """A token whose k3 is beyond 10 costs 10 and has no gradient; TRL takes it as it is."""
    reference = LOGPROBS.clone()
    reference[0, 0] += 4.0  # k3 = exp(4) - 4 - 1 = 49.6

    def penalty(logprobs: Tensor) -> Tensor:
        with_penalty = our_grpo(losses, logprobs, "dapo", reference=reference)
        return with_penalty - our_grpo(losses, logprobs, "dapo")

    def trl_penalty(logprobs: Tensor) -> Tensor:
        return trl_grpo(logprobs, "dapo", reference=reference) - trl_grpo(logprobs, "dapo")

    per_token = 0.1 / int(MASK.sum())
    assert penalty(LOGPROBS).item() == pytest.approx(10 * per_token)
    assert trl_penalty(LOGPROBS).item() == pytest.approx(49.598 * per_token, rel=1e-4)

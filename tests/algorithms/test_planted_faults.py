"""Faults planted in the sources of `algorithms/`: each must turn the test named beside it red.

A fault is a replacement in a module's text. The faulty module is loaded from a copy and handed to the very tests
that guard the real one; only a failed assertion counts, so a fault that merely crashes catches nobody.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import posttrain.algorithms

HERE = Path(__file__).parent
SOURCES = Path(posttrain.algorithms.__file__).parent


@dataclass(frozen=True)
class Fault:
    """`right` stands once in the module and becomes `wrong`; `test` (of the module's test file) must notice."""

    name: str
    module: str
    right: str
    wrong: str
    test: str


MODULES = ("tokens", "advantages", "losses", "returns", "controllers")
T_REWARDS = "test_the_score_is_paid_at_the_last_token_and_the_kl_at_each"
T_GAE, T_DUAL, T_CONTROLLER = "test_gae_by_hand", "test_dual_clip_by_hand", "test_the_controller_by_hand"

FAULTS = [
    # Masks
    Fault("mask means drop", "tokens", "(~mask.bool(), 0.0).sum", "(mask.bool(), 0.0).sum", "test_masked_sum_by_hand"),
    Fault(
        "mask by product lets NaN through",
        "tokens",
        "upcast(values).masked_fill(~mask.bool(), 0.0)",
        "(upcast(values) * mask)",
        "test_masked_sum_by_hand",
    ),
    Fault(
        "masked in place",
        "tokens",
        "upcast(values).masked_fill(",
        "upcast(values).masked_fill_(",
        "test_arguments_are_not_changed",
    ),
    Fault(
        "padded positions keep their loss",
        "losses",
        "per_token.masked_fill(dropped, 0.0)",
        "per_token",
        "test_padding_changes_neither_loss_nor_gradient",
    ),
    Fault(
        "log-probs not masked before arithmetic",
        "losses",
        "new = upcast(logprobs).masked_fill(dropped, 0.0)",
        "new = upcast(logprobs)",
        "test_padding_changes_neither_loss_nor_gradient",
    ),
    Fault(
        "padding counted in the ratio",
        "losses",
        "ratio.detach().masked_fill(dropped, 0.0)",
        "ratio.detach()",
        "test_masked_tokens_are_in_no_statistic",
    ),
    # Denominators
    Fault(
        "mean over padded length",
        "tokens",
        "mask.bool().sum(dim)",
        "(mask == mask).sum(dim)",
        "test_masked_mean_by_hand",
    ),
    Fault("mean without clamp", "tokens", ".sum(dim).clamp(min=1)", ".sum(dim)", "test_masked_mean_by_hand"),
    Fault(
        "tokens divided by the micro-batch's own count",
        "tokens",
        "masked_sum(values, mask) / max(num_tokens, 1)",
        "masked_mean(values, mask)",
        "test_micro_batches_add_up_to_the_whole",
    ),
    Fault(
        "sequences divided by the micro-batch's own count",
        "tokens",
        "masked_mean(values, mask, dim=-1).sum() / max(num_sequences, 1)",
        "masked_mean(values, mask, dim=-1).mean()",
        "test_micro_batches_add_up_to_the_whole",
    ),
    Fault(
        "sequences not divided by length",
        "tokens",
        "masked_mean(values, mask, dim=-1)",
        "masked_sum(values, mask, dim=-1)",
        "test_aggregate_by_hand",
    ),
    Fault(
        "constant length forgotten",
        "tokens",
        "max(num_sequences * max_length, 1)",
        "max(num_sequences, 1)",
        "test_aggregate_by_hand",
    ),
    Fault(
        "padded width for constant length",
        "tokens",
        "num_sequences * max_length",
        "num_sequences * values.shape[1]",
        "test_aggregate_by_hand",
    ),
    Fault(
        "SFT loss by sequence",
        "losses",
        "token_mean(-logprobs, mask, num_tokens=num_tokens)",
        "token_mean(-logprobs, mask, num_tokens=len(mask))",
        "test_sft_loss_by_hand",
    ),
    # KL estimators
    Fault(
        "KL of the wrong sign",
        "tokens",
        "upcast(logprobs) - upcast(ref_logprobs)",
        "upcast(ref_logprobs) - upcast(logprobs)",
        "test_estimators_by_hand",
    ),
    Fault(
        "KL subtracted in bfloat16",
        "tokens",
        "upcast(logprobs) - upcast(ref_logprobs)",
        "upcast(logprobs - ref_logprobs)",
        "test_estimators_subtract_in_float32",
    ),
    Fault("k2 not halved", "tokens", ".square() / 2", ".square()", "test_gradient_of_each_estimator_as_a_loss"),
    Fault(
        "k3 of the inverse ratio",
        "tokens",
        "torch.expm1(-log_ratio) + log_ratio",
        "torch.expm1(log_ratio) - log_ratio",
        "test_k1_and_k3_are_unbiased",
    ),
    Fault(
        "k3 by exp",
        "tokens",
        "torch.expm1(-log_ratio)",
        "torch.exp(-log_ratio) - 1",
        "test_k3_of_small_differences_keeps_its_precision",
    ),
    Fault("k3 without cap", "tokens", ".clamp(0.0, MAX_K3)", ".clamp(0.0)", "test_k3_is_capped"),
    Fault(
        "k3 without bound before exp",
        "tokens",
        ".clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)",
        "",
        "test_k3_is_bounded_and_its_gradient_finite",
    ),
    # Advantages
    Fault(
        "advantage of the wrong sign",
        "advantages",
        "(rewards - rewards.nanmean(-1, keepdim=True)).",
        "(rewards.nanmean(-1, keepdim=True) - rewards).",
        "test_grpo_by_hand",
    ),
    Fault(
        "baseline over the whole batch",
        "advantages",
        "(rewards - rewards.nanmean(-1, keepdim=True)).",
        "(rewards - rewards.nanmean()).",
        "test_groups_are_rows",
    ),
    Fault(
        "leave-one-out keeps itself",
        "advantages",
        "deviation * count / (count - 1).clamp(min=1)",
        "deviation",
        "test_rloo_by_hand",
    ),
    Fault(
        "leave-one-out scaled upside down",
        "advantages",
        "deviation * count / (count - 1).clamp(min=1)",
        "deviation * (count - 1) / count",
        "test_rloo_by_hand",
    ),
    Fault(
        "biased deviation",
        "advantages",
        "nansum(-1, keepdim=True) / (count - 1).clamp(min=1)",
        "nansum(-1, keepdim=True) / count",
        "test_grpo_by_hand",
    ),
    Fault(
        "eps in the denominator",
        "advantages",
        "advantages / std",
        "advantages / (std + 1e-4)",
        "test_small_real_differences_are_not_shrunk",
    ),
    Fault(
        "noise threshold of 0",
        "advantages",
        "eps * magnitude",
        "0 * magnitude",
        "test_rounding_noise_gives_exact_zeros",
    ),
    Fault(
        "noise threshold without regard to size",
        "advantages",
        "eps * magnitude",
        "eps",
        "test_rounding_noise_gives_exact_zeros",
    ),
    Fault(
        "constant groups keep their rounding",
        "advantages",
        ".masked_fill(group_std == 0, 0.0)",
        "",
        "test_a_constant_group_is_exactly_zero_beside_a_mixed_one",
    ),
    Fault(
        "variance in place of deviation", "advantages", ".clamp(min=1)).sqrt()", ".clamp(min=1))", "test_grpo_by_hand"
    ),
    Fault("batch deviation by group", "advantages", "rewards.reshape(1, -1)", "rewards", "test_batch_std_by_hand"),
    Fault(
        "unscorable taken for 0",
        "advantages",
        "rewards = upcast(rewards)\n    assert",
        "rewards = upcast(rewards).nan_to_num(0.0)\n    assert",
        "test_unscorable_by_hand",
    ),
    Fault(
        "unscorable counted",
        "advantages",
        "count = scored.sum(-1, keepdim=True)",
        "count = torch.full_like(rewards[:, :1], rewards.shape[1])",
        "test_unscorable_by_hand",
    ),
    Fault(
        "unscorable stays NaN",
        "advantages",
        "torch.where(scored & (std > 0),",
        "torch.where((std > 0),",
        "test_unscorable_by_hand",
    ),
    Fault("solved taken for failed", "advantages", "mean >= solved_at", "mean <= solved_at", "test_signal_by_hand"),
    # Policy loss
    Fault(
        "SFT loss of the wrong sign", "losses", "token_mean(-logprobs", "token_mean(logprobs", "test_sft_loss_by_hand"
    ),
    Fault(
        "policy loss of the wrong sign",
        "losses",
        "-torch.minimum",
        "torch.minimum",
        "test_ratio_of_one_has_the_gradient_of_reinforce",
    ),
    Fault("maximum for minimum", "losses", "torch.minimum", "torch.maximum", "test_clipping_by_hand"),
    Fault(
        "ratio upside down",
        "losses",
        "(new - old).clamp(-MAX_LOG_RATIO",
        "(old - new).clamp(-MAX_LOG_RATIO",
        "test_clipping_by_hand",
    ),
    Fault(
        "never clipped",
        "losses",
        "torch.minimum(ratio * advantage, clipped * advantage)",
        "(ratio * advantage)",
        "test_clipping_by_hand",
    ),
    Fault(
        "always clipped",
        "losses",
        "torch.minimum(ratio * advantage, clipped * advantage)",
        "(clipped * advantage)",
        "test_clipping_by_hand",
    ),
    Fault(
        "bounds swapped",
        "losses",
        "ratio.clamp(1 - epsilon_low, 1 + epsilon_high)",
        "ratio.clamp(1 - epsilon_high, 1 + epsilon_low)",
        "test_clipping_by_hand",
    ),
    Fault(
        "on-policy gradient lost",
        "losses",
        "old = new.detach() if",
        "old = new if",
        "test_ratio_of_one_has_the_gradient_of_reinforce",
    ),
    Fault(
        "gradient into the old policy",
        "losses",
        "upcast(old_logprobs).detach()",
        "upcast(old_logprobs)",
        "test_gradients_flow_into_the_log_probs_alone",
    ),
    Fault(
        "ratio detached",
        "losses",
        "MAX_LOG_RATIO).exp()",
        "MAX_LOG_RATIO).exp().detach() + 0 * new",
        "test_gradient_passes_finite_differences",
    ),
    Fault(
        "ratio unbounded",
        "losses",
        ".clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()",
        ".exp()",
        "test_extreme_ratios_stay_finite",
    ),
    Fault(
        "advantage along the tokens",
        "losses",
        "advantage.unsqueeze(-1)",
        "advantage.unsqueeze(0)",
        "test_reinforce_gradient_is_that_of_the_expected_reward",
    ),
    Fault(
        "clip count of the side that does not bite",
        "losses",
        "(ratio < 1 - epsilon_low) & (advantage < 0)",
        "(ratio < 1 - epsilon_low)",
        "test_clipping_by_hand",
    ),
    Fault(
        "clip counts for the wrong sign",
        "losses",
        "(ratio > 1 + epsilon_high) & (advantage > 0)",
        "(ratio > 1 + epsilon_high) & (advantage < 0)",
        "test_clipping_by_hand",
    ),
    Fault(
        "KL of the wrong direction",
        "losses",
        "k3(old, new.detach())",
        "k3(new.detach(), old)",
        "test_statistics_by_hand",
    ),
    Fault("statistics hold the graph", "losses", "ratio=ratio.detach()", "ratio=ratio", "test_statistics_are_detached"),
    # PPO
    Fault("kl rewarded", "returns", "-kl_coef * k1(", "kl_coef * k1(", T_REWARDS),
    Fault("score after the last token", "returns", "keep.sum(-1) - 1)", "keep.sum(-1) - 2)", T_REWARDS),
    Fault("value not discounted", "returns", "gamma * after - values", "after - values", "test_gae_by_hand"),
    Fault("lambda forgotten", "returns", "gamma * gae_lambda * advantage", "gamma * advantage", "test_gae_by_hand"),
    Fault(
        "padding read as a next value",
        "returns",
        "after = torch.where(keep[:, t], values[:, t], after)",
        "after = values[:, t]",
        "test_gae_takes_the_value_behind_a_truncated_end",
    ),
    Fault("returns without values", "returns", "(advantages + values).masked_fill", "advantages.masked_fill", T_GAE),
    Fault("biased deviation", "returns", "keep.sum() - 1)", "keep.sum())", "test_whitening_by_hand"),
    Fault("mean kept", "returns", "(upcast(values) - mean)", "upcast(values)", "test_whitening_by_hand"),
    Fault("the smaller value loss", "losses", "torch.maximum(plain", "torch.minimum(plain", "test_value_loss_by_hand"),
    Fault("value loss not halved", "losses", "of_held) / 2", "of_held)", "test_value_loss_by_hand"),
    Fault("dual clip of good tokens", "losses", "(ratio > dual_clip) & (advantage < 0)", "ratio > dual_clip", T_DUAL),
    Fault("controller turned round", "controllers", "kl / self.target - 1)", "1 - kl / self.target)", T_CONTROLLER),
    Fault("controller counts batches", "controllers", "error * num_sequences", "error", T_CONTROLLER),
    Fault("batches not joined", "controllers", "of_batch + between", "of_batch", "test_moments_by_hand"),
]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TESTS = {name: load(HERE / f"test_{name}.py") for name in MODULES}


def run_test(fault: Fault, source: str, path: Path) -> None:
    """Run the fault's test against a module loaded from `source`, written to a path of its own.

    A path used twice could load the bytecode of the first.
    """
    path.write_text(source)
    getattr(TESTS[fault.module], fault.test)(load(path))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_caught(fault, tmp_path):
    source = (SOURCES / f"{fault.module}.py").read_text()
    assert source.count(fault.right) == 1, f"{fault.right!r} must stand once in {fault.module}.py"
    run_test(fault, source, tmp_path / "clean.py")  # the clean copy passes
    with pytest.raises(AssertionError):
        run_test(fault, source.replace(fault.right, fault.wrong), tmp_path / "faulty.py")

"""Faults planted in the preference losses: each must turn the test named beside it red, as in test_planted_faults."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("planted_faults", HERE / "test_planted_faults.py")
assert _SPEC is not None
assert _SPEC.loader is not None
planted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(planted)

# name, what stands once in the module, what it becomes, the test that must notice
FAULTS = [
    # Masks and denominators
    ("sum over the mask's complement", "masked_sum(logprobs, mask, dim=-1)", "masked_sum(logprobs, ~mask, dim=-1)",
     "test_sequence_logprobs_by_hand"),
    ("padded lengths", "mask.bool().sum(-1)", "(mask == mask).sum(-1)", "test_sequence_logprobs_by_hand"),
    ("empty sequences divide by 0", "lengths.clamp(min=1)", "lengths", "test_sequence_logprobs_by_hand"),
    ("summed, not per token", "upcast(sums) / lengths.clamp(min=1)", "upcast(sums)", "test_sequence_logprobs_by_hand"),
    ("robust loss not divided", " / (1 - 2 * label_smoothing)", "", "test_robust_dpo_is_unbiased_under_flipped_labels"),
    ("robust loss divided by 1 - e", "(1 - 2 * label_smoothing)", "(1 - label_smoothing)",
     "test_robust_dpo_is_unbiased_under_flipped_labels"),
    ("IPO's target not halved", "1 / (2 * beta)", "1 / beta", "test_ipo_by_hand"),
    # Signs
    ("chosen and rejected swapped", "upcast(chosen) - upcast(rejected)\n", "upcast(rejected) - upcast(chosen)\n",
     "test_dpo_by_hand"),
    ("reference added", "upcast(logprobs) - upcast(ref_logprobs)", "upcast(logprobs) + upcast(ref_logprobs)",
     "test_log_ratio_has_a_gradient_for_the_policy_alone"),
    ("smoothing that does not act", "- label_smoothing * F.logsigmoid(-logits)\n", "- 0 * F.logsigmoid(-logits)\n",
     "test_conservative_dpo_by_hand"),
    ("smoothing on the same side", "- label_smoothing * F.logsigmoid(-logits)\n",
     "- label_smoothing * F.logsigmoid(logits)\n", "test_conservative_dpo_by_hand"),
    ("conservative for robust", "* clean - label_smoothing * flipped", "* clean + label_smoothing * flipped",
     "test_robust_dpo_by_hand"),
    ("hinge turned", "F.relu(1 - beta", "F.relu(1 + beta", "test_hinge_by_hand"),
    ("IPO's target subtracted the wrong way", "- 1 / (2 * beta)", "+ 1 / (2 * beta)", "test_ipo_by_hand"),
    ("SimPO's margin given away", "- gamma)\n", "+ gamma)\n", "test_simpo_by_hand"),
    ("SimPO's margin scaled by beta", "beta * _difference(chosen, rejected) - gamma",
     "beta * (_difference(chosen, rejected) - gamma)", "test_simpo_by_hand"),
    ("ORPO without likelihood", "-upcast(chosen) - beta", "-beta", "test_orpo_by_hand"),
    ("ORPO pulls rejected up", "_log_odds(chosen) - _log_odds(rejected)", "_log_odds(rejected) - _log_odds(chosen)",
     "test_orpo_by_hand"),
    ("odds of 1 + p", "torch.log1p(-logprob", "torch.log1p(logprob", "test_orpo_by_hand"),
    ("odds without a bound", ".clamp(max=MAX_MEAN_LOGPROB)", "", "test_orpo_stays_finite_at_the_ends"),
    ("KTO's sign not turned", "torch.where(wanted, gain, -gain)", "gain", "test_kto_by_hand"),
    ("KTO's weights swapped", "(wanted, desirable_weight, undesirable_weight)",
     "(wanted, undesirable_weight, desirable_weight)", "test_kto_by_hand"),
    ("KTO's KL added", "(upcast(log_ratios) - upcast(kl).detach())", "(upcast(log_ratios) + upcast(kl).detach())",
     "test_kto_by_hand"),
    ("KTO's KL below 0", ".mean().clamp(min=0)", ".mean()", "test_kto_kl_is_a_mean_from_0_up"),
    ("KTO's KL summed", ".mean().clamp(min=0)", ".sum().clamp(min=0)", "test_kto_kl_is_a_mean_from_0_up"),
    ("KTO's KL trained", "upcast(mismatched).detach()", "upcast(mismatched)", "test_kto_kl_is_a_mean_from_0_up"),
    ("margin outside the difference", "difference - upcast(margins).detach()", "difference + upcast(margins).detach()",
     "test_bradley_terry_by_hand"),
    ("centring on the difference", "(upcast(chosen) + upcast(rejected)).square()",
     "(upcast(chosen) - upcast(rejected)).square()", "test_bradley_terry_by_hand"),
    # Gradients and precision
    ("gradient into the reference", "upcast(ref_logprobs).detach()", "upcast(ref_logprobs)",
     "test_log_ratio_has_a_gradient_for_the_policy_alone"),
    ("ratio in bfloat16", "upcast(logprobs) - upcast(ref_logprobs).detach()",
     "(logprobs - ref_logprobs.to(logprobs.dtype)).detach()", "test_log_ratio_subtracts_in_float32"),
    ("sigmoid before log", "-(1 - label_smoothing) * F.logsigmoid(logits)",
     "-(1 - label_smoothing) * torch.sigmoid(logits).log()", "test_a_large_difference_is_finite"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong", "test"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_planted_fault_is_caught(name: str, right: str, wrong: str, test: str, tmp_path: Path) -> None:
    tests = planted.load(HERE / "test_preferences.py")
    source = (planted.SOURCES / "preferences.py").read_text()
    assert source.count(right) == 1, f"{right!r} must stand once in preferences.py"
    for text, path in ((source, tmp_path / "clean.py"), (source.replace(right, wrong), tmp_path / "faulty.py")):
        path.write_text(text)
    getattr(tests, test)(planted.load(tmp_path / "clean.py"))  # the clean copy passes
    with pytest.raises(AssertionError):
        getattr(tests, test)(planted.load(tmp_path / "faulty.py"))

"""An update of GRPO beside TRL's GRPOTrainer and RLOOTrainer: same completions, same rewards, same gradients.

As in `test_trl_parity.py`, whose two sides these tests use. Sampling is left out: both are given what an engine would
return. Rewards are large where the 1e-4 that TRL adds to their deviation should not show.
"""

import importlib.util
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.algorithms.advantages import group_advantages
from posttrain.data.chat import render_prompt
from posttrain.models.lm import load_model
from posttrain.models.logprobs import completion_logprobs
from posttrain.records import Completion, Rollout, StopReason, Tree
from posttrain.settings import GrpoSettings, SamplingSettings
from posttrain.stages.grpo import policy_data
from posttrain.stages.reference import Reference
from posttrain.stages.rollout import reward_table

_SPEC = importlib.util.spec_from_file_location("trl_parity", Path(__file__).with_name("test_trl_parity.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)
pytestmark, saved_model, llama = parity.pytestmark, parity.saved_model, parity.llama
Step, assert_same, mixed = parity.Step, parity.assert_same, parity.mixed

AGGREGATIONS = {"dapo": "token_mean", "grpo": "sequence_mean", "dr_grpo": "constant_length"}
PROMPTS = [{"prompt": row["prompt"]} for row in parity.PAIRS[:3]]
MAX_LENGTH = 12
REWARDS = [[2000.0, 0.0, 0.0, 1000.0], [500.0, 500.0, 500.0, 500.0], [0.0, 0.0, 3000.0, 0.0]]
EQUALLY_SPREAD = [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
UNSCORABLE = [[2000.0, 0.0, None, 1000.0], [None, None, None, None], [0.0, 0.0, 3000.0, 1000.0]]
LENGTHS = [[3, MAX_LENGTH, 7, 1], [2, 5, MAX_LENGTH, 8], [MAX_LENGTH, 4, 6, 9]]  # the longest are truncated
SAMPLED = len(LENGTHS) * len(LENGTHS[0])


def sampled_ids(eos_id: int) -> list[list[list[int]]]:
    """Return the ids of each prompt's completions, in the lengths above."""
    generator = torch.Generator().manual_seed(0)
    ids = [[torch.randint(2, 400, (length,), generator=generator).tolist() for length in group] for group in LENGTHS]
    return [[each if len(each) == MAX_LENGTH else [*each[:-1], eos_id] for each in group] for group in ids]


def our_grpo(
    base: str,
    directory: Path,
    rewards: Sequence[Sequence[float | None]] = REWARDS,
    seeds: Sequence[int] = (1,),
    **options: Any,
) -> Step:
    """Return the update of a policy, the last of `seeds`, on what another, the first, sampled."""
    sampling = SamplingSettings(temperature=0.7, max_completion_length=MAX_LENGTH)
    settings = parity.stage_settings(GrpoSettings, base, sampling=sampling, num_iterations=len(seeds), **options)
    loaded = load_model(settings.model, seed=0)
    reference = Reference(loaded) if settings.kl_coef > 0 else None
    trees = []
    for row, group, scores in zip(
        parity.read(PROMPTS, directory), sampled_ids(min(loaded.eos_ids)), rewards, strict=True
    ):
        prompt = render_prompt(row, loaded.tokenizer)
        reasons = [StopReason.LENGTH if len(ids) == MAX_LENGTH else StopReason.EOS for ids in group]
        completions = [Completion(tuple(i), (-1.0,) * len(i), why, "") for i, why in zip(group, reasons, strict=True)]
        rollouts = [Rollout(c, {}, reward, 0) for c, reward in zip(completions, scores, strict=True)]
        trees.append(Tree(prompt, tuple(rollouts)))
    advantages = group_advantages(
        reward_table(trees), baseline=settings.advantage_baseline, scale=settings.advantage_scale
    )
    parity.draw(loaded.model, seeds[0])
    data = policy_data(trees, advantages, loaded, reference, settings)
    parity.draw(loaded.model, seeds[-1])
    forward = partial(completion_logprobs, temperature=sampling.temperature)
    return parity.our_step(loaded, settings, data.trees, data.loss_share(settings), forward=forward)


def trl_grpo(
    base: str,
    directory: Path,
    rewards: Sequence[Sequence[float | None]] = REWARDS,
    seeds: Sequence[int] = (1,),
    name: str = "GRPO",
    **options: Any,
) -> Step:
    """Return the last step of TRL's trainer, which is given completions and rewards in the first."""

    def sampled(trainer: Any) -> None:
        completions = list(chain.from_iterable(sampled_ids(trainer.processing_class.eos_token_id)))
        given = (completions, None) if name == "GRPO" else completions
        trainer._generate_single_turn = lambda *_: given

    defaults = {
        "per_device_train_batch_size": SAMPLED // 2,
        "gradient_accumulation_steps": 2,
        "num_generations": len(REWARDS[0]),
        "num_iterations": len(seeds),
        "max_completion_length": MAX_LENGTH,
        "temperature": 0.7,
        "shuffle_dataset": False,
        "beta": 0.0,
        **({"use_bias_correction_kl": False} if name == "GRPO" else {}),
    }
    arguments = {"reward_funcs": lambda **_: list(chain.from_iterable(rewards))}
    return parity.trl_step(
        name, base, PROMPTS, directory, seeds=seeds, change=sampled, arguments=arguments, **defaults | options
    )


@pytest.mark.parametrize(
    ("loss_type", "scaled_by", "scale"),
    [("dapo", "group", "group_std"), ("grpo", "batch", "batch_std"), ("dr_grpo", "none", "none")],
)
@pytest.mark.parametrize(("seeds", "kl_coef"), [((1,), 0.0), ((1, 2), 0.04)], ids=["on-policy", "off-policy"])
def test_grpo_is_that_of_trl(
    llama: str, tmp_path: Path, loss_type: str, scaled_by: str, scale: str, seeds: tuple[int, ...], kl_coef: float
) -> None:
    """With `use_bias_correction_kl` off, which is on in TRL 1.16 and changes the gradient of the KL penalty."""
    policy = {"loss_aggregation": AGGREGATIONS[loss_type], "advantage_scale": scale, "kl_coef": kl_coef}
    found = our_grpo(llama, tmp_path, seeds=seeds, epsilon_high=0.28, **policy)
    options = {"loss_type": loss_type, "scale_rewards": scaled_by, "epsilon": 0.2, "beta": kl_coef}
    assert_same(found, trl_grpo(llama, tmp_path, seeds=seeds, epsilon_high=0.28, **options))
    if len(seeds) > 1:
        assert found.metrics["clip_ratio/low_mean"] > 0
        with pytest.raises(AssertionError):
            assert_same(found, trl_grpo(llama, tmp_path, seeds=seeds, epsilon_high=0.281, **options))


@pytest.mark.parametrize(("loss_type", "aggregation"), AGGREGATIONS.items())
def test_what_is_left_out_stays_in_trls_denominator(
    llama: str, tmp_path: Path, loss_type: str, aggregation: str
) -> None:
    """Completions without a reward have advantage 0 on both sides, and no weight in our means; so have masked ones.

    TRL's means count the former's tokens, and over sequences both.
    """
    found = our_grpo(llama, tmp_path, loss_aggregation=aggregation, mask_truncated=True)
    expected = trl_grpo(llama, tmp_path, loss_type=loss_type, mask_truncated_completions=True)
    assert_same(mixed((1.0 if loss_type == "dapo" else 9 / SAMPLED, found)), expected)
    found = our_grpo(llama, tmp_path, UNSCORABLE, loss_aggregation=aggregation)
    expected = trl_grpo(llama, tmp_path, UNSCORABLE, loss_type=loss_type)
    lengths, rewards = (list(chain.from_iterable(table)) for table in (LENGTHS, UNSCORABLE))
    scored = [length for length, reward in zip(lengths, rewards, strict=True) if reward is not None]
    share = sum(scored) / sum(lengths) if loss_type == "dapo" else len(scored) / SAMPLED
    assert_same(mixed((share, found)), expected)


def test_trl_adds_to_the_deviation_that_it_divides_by(llama: str, tmp_path: Path) -> None:
    """1e-4, which shrinks usual advantages a little and makes rounding noise in equal rewards large; ours are exact.

    All rewards here spread by sqrt(1/3) in their group.
    """
    found = our_grpo(llama, tmp_path, EQUALLY_SPREAD)
    expected = trl_grpo(llama, tmp_path, EQUALLY_SPREAD, loss_type="dapo")
    assert_same(mixed((3**-0.5 / (3**-0.5 + 1e-4), found)), expected)
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_rloo_has_the_gradient_of_trls(llama: str, tmp_path: Path) -> None:
    """RLOOTrainer weighs whole sequences by one ratio, and takes a KL penalty off the reward; ours weighs tokens.

    On-policy and without penalty its gradient is that of `leave_one_out` with `constant_length`, times the length; the
    values differ, and so does what clipping does.
    """
    policy = {"advantage_scale": "none", "loss_aggregation": "constant_length"}
    found = our_grpo(llama, tmp_path, advantage_baseline="leave_one_out", **policy)
    expected = trl_grpo(llama, tmp_path, name="RLOO")
    assert_same(mixed((MAX_LENGTH, found)), expected, losses=False)
    with pytest.raises(AssertionError):
        assert_same(mixed((MAX_LENGTH, our_grpo(llama, tmp_path, **policy))), expected, losses=False)

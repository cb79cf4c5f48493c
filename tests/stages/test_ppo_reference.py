"""A whole PPO step beside the plainest one: each completion by itself, loops over tokens, torch's own operations."""

import math
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from posttrain.models.lm import load_model
from posttrain.models.logprobs import plain_model
from posttrain.models.values import make_value_head
from posttrain.rewards import REWARDS
from posttrain.settings import AdaptiveKlSettings, CriticSettings, DataSettings, PpoSettings, SamplingSettings
from posttrain.stages.ppo import ppo
from tests.stages.conftest import RunStage, metrics, model_settings

GAMMA, LAMBDA, KL, TEMPERATURE = 0.98, 0.9, 0.2, 0.8


def ppo_settings(directory: str, **options: Any) -> PpoSettings:
    return PpoSettings(
        model=model_settings(directory, lora_r=4, layout="rows"),
        data=DataSettings(rows=4),
        rewards={"varied": 1.0},
        sampling=SamplingSettings(max_completion_length=10, temperature=TEMPERATURE),
        prompts_per_step=3,
        num_generations=2,
        max_steps=2,
        num_ppo_epochs=1,
        learning_rate=1e-3,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        kl_coef=KL,
        adaptive_kl=AdaptiveKlSettings(target=1.0, horizon=60),
        entropy_coef=0.01,
        bootstrap_truncated=True,
        max_grad_norm=1e9,
        **options,
    )


def plain_step(settings: PpoSettings, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the first step must log, from the completions that it sampled."""
    loaded = load_model(settings.model, seed=settings.seed)
    model = loaded.model
    assert isinstance(model, PeftModel)
    plain = plain_model(model)
    plain.set_attn_implementation("eager")
    head = make_value_head(loaded, seed=settings.seed)

    def pass_over(prompt: list[int], completion: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probs and entropies of a completion's tokens, and the values of all its states."""
        states = plain.base_model(input_ids=torch.tensor([prompt + completion]), use_cache=False).last_hidden_state[0]
        states = states[len(prompt) - 1 :]
        logits = (states[:-1] @ plain.get_output_embeddings().weight.T) / TEMPERATURE
        log_softmax = torch.log_softmax(logits, dim=-1)
        logprobs = log_softmax[torch.arange(len(completion)), torch.tensor(completion)]
        return logprobs, -(log_softmax.exp() * log_softmax).sum(-1), head(states).squeeze(-1)

    advantages, returns = [], []
    kl_sum = 0.0
    for row in rows:
        completion, score = row["completion_ids"], row["reward"]
        with torch.no_grad():
            logprobs, _, values = pass_over(row["prompt_ids"], completion)
            with model.disable_adapter():
                reference, _, _ = pass_over(row["prompt_ids"], completion)
        rewards = (-KL * (logprobs - reference)).tolist()
        rewards[-1] += score
        kl_sum += float((logprobs - reference).sum())
        after = float(values[-1]) if row["stop_reason"] == "length" else 0.0
        advantage = 0.0
        found: list[float] = []
        for t in reversed(range(len(completion))):
            advantage = rewards[t] + GAMMA * after - float(values[t]) + GAMMA * LAMBDA * advantage
            after = float(values[t])
            found.insert(0, advantage)
        advantages.append(found)
        returns.append([a + float(v) for a, v in zip(found, values, strict=False)])
    flat = [a for each in advantages for a in each]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((a - mean) ** 2 for a in flat) / (len(flat) - 1))
    policy_loss = value_loss = torch.zeros(())
    for row, of_row, targets in zip(rows, advantages, returns, strict=True):
        logprobs, entropy, values = pass_over(row["prompt_ids"], row["completion_ids"])
        whitened = (torch.tensor(of_row) - mean) / std
        ratio = (logprobs - logprobs.detach()).exp()
        policy_loss = policy_loss - (ratio * whitened + settings.entropy_coef * entropy).sum() / len(flat)
        value_loss = value_loss + (values[:-1] - torch.tensor(targets)).square().sum() / 2 / len(flat)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    of_policy = torch.autograd.grad(policy_loss, trained, retain_graph=True)
    of_critic = torch.autograd.grad(value_loss, [*trained, *head.parameters()])
    return {
        "loss": float(policy_loss),
        "grad_norm": float(torch.nn.utils.get_total_norm(of_policy)),
        "value/loss": float(value_loss),
        "value/grad_norm": float(torch.nn.utils.get_total_norm(of_critic)),
        "returns/mean": sum(value for each in returns for value in each) / len(flat),
        "advantages/std": std,
        "kl/sequence": kl_sum / len(rows),
    }


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_a_step_equals_the_plainest_one(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """The critic's adapter starts as the policy's, so that one model stands for both here."""
    monkeypatch.setitem(REWARDS, "varied", lambda completions, **columns: [len(text) / 10 for text in completions])
    settings = ppo_settings(model_directory, critic=CriticSettings(value_clip=0.2))
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"layout": layout})})
    run = run_stage(ppo, settings, "ppo")
    rows = pq.read_table(run.path / "rollouts" / "step-00000001.parquet").to_pylist()
    loaded = load_model(settings.model, seed=0)
    for row in rows:
        row["prompt_ids"] = loaded.tokenizer(row["prompt"])["input_ids"]
    first, second = metrics(run)
    for name, value in plain_step(settings, rows).items():
        assert first[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
    error = max(-0.2, min(0.2, first["kl/sequence"] / 1.0 - 1))
    assert second["kl_coef"] == pytest.approx(KL * (1 + error * 6 / 60))

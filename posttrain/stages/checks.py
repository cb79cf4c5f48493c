"""What can be wrong with a stage's settings as a whole, beyond the type of each: said before anything starts.

Floor 5: settings alone, no torch and no file; a problem is the key that it hangs on and the error to raise.
"""

from collections.abc import Iterator, Mapping

from posttrain.data.rows import Kind
from posttrain.errors import ConfigError
from posttrain.evals.checks import evaluation_problems, frontier_problems
from posttrain.nano.corpus import PARTS
from posttrain.rewards.checks import reward_problems
from posttrain.settings import (
    DpoSettings,
    EvalSettings,
    FrontierSettings,
    GrpoSettings,
    ModelSettings,
    PolicyStageSettings,
    PpoSettings,
    PretrainSettings,
    RmSettings,
    StageSettings,
)
from posttrain.stages.preference_losses import PREFERENCE_LOSSES, needs_pairs

Problem = tuple[str, ConfigError]  # dotted key, error


def settings_problems(settings: StageSettings) -> Iterator[Problem]:
    """Yield the problems of any stage's settings."""
    if isinstance(settings, GrpoSettings):
        yield from policy_problems(settings, "grpo")
    elif isinstance(settings, PpoSettings):
        yield from policy_problems(settings, "ppo")
        yield from ppo_problems(settings)
    elif isinstance(settings, DpoSettings):
        yield from dpo_problems(settings)
    elif isinstance(settings, PretrainSettings):
        yield from ignored_model_problems(settings.model)
        yield from blend_problems("blend", settings.blend)
        yield from blend_problems("mid_training_blend", settings.mid_training_blend)
    elif isinstance(settings, EvalSettings):
        yield from evaluation_problems(settings)
    elif isinstance(settings, FrontierSettings):
        yield from frontier_problems(settings)


def check_settings(settings: StageSettings) -> None:
    """Raise the first problem."""
    for _, error in settings_problems(settings):
        raise error


def policy_problems(settings: PolicyStageSettings, stage: str) -> Iterator[Problem]:
    """Yield settings under which the update would not be the gradient of what was sampled."""
    yield from reward_problems(settings)
    if settings.gold_reward is not None and settings.gold_reward not in settings.rewards:
        message = f"gold_reward = {settings.gold_reward} is none of the rewards: {', '.join(settings.rewards)}"
        yield "gold_reward", ConfigError(message, fix=f"--rewards.{settings.gold_reward} 0.0")
    sampling = settings.sampling
    if sampling.temperature == 0:
        yield (
            "sampling.temperature",
            ConfigError(
                f"{stage} learns from different completions of a prompt, and sampling.temperature = 0 gives equal ones",
                fix="--sampling.temperature 1.0",
            ),
        )
    for name, untouched in {"top_p": 1.0, "top_k": 0, "min_p": 0.0}.items():
        if getattr(sampling, name) != untouched:
            yield (
                f"sampling.{name}",
                ConfigError(
                    f"{stage} trains on the whole vocabulary's distribution, and sampling.{name} cuts it",
                    fix=f"--sampling.{name} {untouched}",
                ),
            )
    if settings.model.lora_dropout > 0:
        yield (
            "model.lora_dropout",
            ConfigError(
                "model.lora_dropout makes the log-probs of the update differ from those of the rollouts",
                fix="--model.lora_dropout 0.0",
            ),
        )


def ppo_problems(settings: PpoSettings) -> Iterator[Problem]:
    """Yield what critic, controller and mini-batches cannot do together."""
    critic = settings.critic
    if critic.kind == "shared" and critic.warmup_steps:
        message = "critic.kind = shared learns with the policy in one update, and critic.warmup_steps keeps it back"
        yield "critic.warmup_steps", ConfigError(message, fix="--critic.warmup_steps 0")
    if critic.kind == "shared" and critic.learning_rate is not None:
        message = "critic.kind = shared learns with the policy, at its learning_rate; its weight is critic.loss_coef"
        yield "critic.learning_rate", ConfigError(message, fix="--critic.learning_rate none")
    if critic.kind in ("adapter", "shared") and critic.name_or_path is not None:
        message = f"critic.name_or_path is for critic.kind = model; {critic.kind} stands on the policy's own base"
        yield "critic.name_or_path", ConfigError(message, fix="--critic.kind model")
    if critic.warmup_steps >= settings.max_steps:
        message = f"critic.warmup_steps = {critic.warmup_steps} leave none of {settings.max_steps} steps to the policy"
        yield "critic.warmup_steps", ConfigError(message, fix=f"--critic.warmup_steps {settings.max_steps // 10}")
    if settings.adaptive_kl.target is not None and settings.kl_coef == 0:
        message = "adaptive_kl.target moves kl_coef by factors, and from 0 none leads away"
        yield "adaptive_kl.target", ConfigError(message, fix="--kl_coef 0.05")
    if settings.num_mini_batches > settings.prompts_per_step:
        message = f"num_mini_batches = {settings.num_mini_batches}, and a step has {settings.prompts_per_step} prompts"
        yield "num_mini_batches", ConfigError(message, fix=f"--num_mini_batches {settings.prompts_per_step}")


def dpo_problems(settings: DpoSettings) -> Iterator[Problem]:
    """Yield losses that are unknown, incomplete or without a meaning together, and settings that none of them reads."""
    unknown = [name for name in settings.losses if name not in PREFERENCE_LOSSES]
    for name in unknown:
        yield f"losses.{name}", ConfigError(f"unknown loss {name}; expected some of {', '.join(PREFERENCE_LOSSES)}")
    if unknown:
        return
    if not settings.losses.keys() - {"sft"}:
        yield "losses", ConfigError("dpo needs a loss besides the sft term", fix="--losses.sigmoid 1.0")
    if settings.label_smoothing > 0 and not any(PREFERENCE_LOSSES[name].smoothed for name in settings.losses):
        smoothed = ", ".join(name for name, loss in PREFERENCE_LOSSES.items() if loss.smoothed)
        message = f"label_smoothing acts on {smoothed} alone, and losses has {', '.join(settings.losses)}"
        yield "label_smoothing", ConfigError(message, fix="--label_smoothing 0.0")
    if "kto" in settings.losses and settings.rows_per_step < 2:
        message = "kto compares each prompt with the completion of another, and rows_per_step = 1 has no other"
        yield "rows_per_step", ConfigError(message, fix="--rows_per_step 16")
    if "kto" in settings.losses and settings.reference_cache is not None:
        message = "kto asks the reference about other pairs of prompt and completion at each step: nothing to keep"
        yield "reference_cache", ConfigError(message, fix="--reference_cache none")
    if settings.model.lora_dropout > 0:
        message = "model.lora_dropout makes the policy differ from the reference before anything is learned"
        yield "model.lora_dropout", ConfigError(message, fix="--model.lora_dropout 0.0")


def row_kinds(settings: RmSettings | DpoSettings) -> tuple[Kind, ...]:
    """Return the kinds of rows that a stage of preferences can learn from."""
    if isinstance(settings, DpoSettings) and not needs_pairs(settings):
        return "preference", "unpaired"
    return ("preference",)


def ignored_model_problems(model: ModelSettings) -> Iterator[Problem]:
    """Yield the settings of a loaded model: pretrain makes its own, and trains all of it."""
    for name in sorted(model.model_fields_set - {"dtype", "device", "layout"}):
        if getattr(model, name) != ModelSettings.model_fields[name].get_default():
            yield f"model.{name}", ConfigError(f"model.{name} has no meaning for pretrain, which makes its model")


def blend_problems(name: str, blend: Mapping[str, float]) -> Iterator[Problem]:
    """Yield the parts that the corpus does not have; a blend needs some weight, unless it is empty."""
    for part in blend:
        if part not in PARTS:
            yield f"{name}.{part}", ConfigError(f"unknown corpus part {part}; expected some of {', '.join(PARTS)}")
    if blend and not any(blend.values()):
        yield name, ConfigError(f"every part of {name} has the weight 0", fix=f"--{name}.worked 1.0")

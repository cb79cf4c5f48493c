"""The settings of each stage, at most the table of its name in a recipe.

Floor 0.
"""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Count, Fraction, NonNegative, Positive, Settings
from posttrain.settings.parts import DataSettings, EngineSettings, ModelSettings, SamplingSettings
from posttrain.settings.rewards import RewardSettings


class StageSettings(Settings):
    """What every stage has."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Run seed; every draw is derived from it."""


class ModelStageSettings(StageSettings):
    """What every stage with a model has."""

    model: ModelSettings = ModelSettings()
    """The model that the stage starts from."""


class OptimizedStageSettings(ModelStageSettings):
    """What every stage with an optimizer has: AdamW, warm-up, decay, clipping, checkpoints."""

    learning_rate: Positive = 1e-5
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights, or Muon for the matrices inside the model (for training from scratch)."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer updates over which the learning rate rises linearly from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Decay of AdamW's second moment; beta1 is 0.9."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    max_tokens_per_micro_batch: Count = 4096
    """Token budget of one forward pass: sets memory, never the result."""
    save_steps: Count = 50
    """Write a checkpoint every so many steps."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints to keep, never fewer than two."""


class PolicyTrainingSettings(OptimizedStageSettings):
    """What every stage has that trains a policy from another."""

    keep_policy_steps: Annotated[int, Field(ge=0)] = 0
    """Keep the policy of every so many steps, and of the last, each as large as the artifact; 0 keeps none."""


class PretrainSettings(OptimizedStageSettings):
    """Train a small Llama from scratch on the nano corpus, in two phases."""

    learning_rate: Positive = 3e-3
    optimizer: Literal["adamw", "muon"] = "muon"
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    hidden_size: Count = 256
    """Width of the model."""
    num_hidden_layers: Count = 4
    """Depth of the model."""
    num_attention_heads: Count = 4
    """Query heads of each layer."""
    num_key_value_heads: Count = 2
    """Key and value heads of each layer."""
    intermediate_size: Count = 640
    """Width of the feed-forward layers."""
    vocab_size: Annotated[int, Field(ge=300)] = 1024
    """Entries of the byte-pair vocabulary, special tokens included; every digit is a token of its own."""
    context_length: Count = 1024
    """Longest sequence that the model is made for."""
    documents_per_step: Count = 128
    """Documents in one optimizer update."""
    max_steps: Count = 1000
    """Optimizer updates in both phases together."""
    mid_training_fraction: Fraction = 0.2
    """Share of the steps, at the end, trained on the second blend."""
    blend: dict[str, NonNegative] = {}
    """Weights of the corpus parts in the first phase; empty takes the vetted ones."""
    mid_training_blend: dict[str, NonNegative] = {}
    """Weights of the corpus parts in the second phase; empty takes the vetted ones."""


class RowStageSettings(OptimizedStageSettings):
    """What every stage has that passes over given rows."""

    data: DataSettings = DataSettings()
    rows_per_step: Count = 16
    """Rows in one optimizer update; the loss is a mean over all of them, however they fall into micro-batches."""
    num_train_epochs: Positive = 1.0
    """Passes over the data; ignored where max_steps is set."""
    max_steps: Annotated[int, Field(ge=0)] = 0
    """Steps to train; 0 derives them from num_train_epochs."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"


class SftSettings(RowStageSettings, PolicyTrainingSettings):
    """Supervised fine-tuning on prompt-completion pairs, conversations or text."""

    learning_rate: Positive = 2e-5


class RmSettings(RowStageSettings):
    """Reward modelling: a score for each completion, learned from preference pairs (Bradley-Terry)."""

    data: DataSettings = DataSettings(source="nano_preferences")
    learning_rate: Positive = 1e-4
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs that are thought to be labelled the wrong way round."""
    center_rewards_coefficient: NonNegative = 0.0
    """Weight of the squared sum of a pair's two scores, which holds scores around 0; 0.01 is usual."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts whose pairs are never trained on: the reward model is measured on them at the end."""


class DpoSettings(RowStageSettings, PolicyTrainingSettings):
    """Direct preference optimisation and its relatives: learn from pairs without a reward model."""

    data: DataSettings = DataSettings(source="nano_preferences")
    learning_rate: Positive = 1e-6
    losses: dict[str, Positive] = {"sigmoid": 1.0}
    """Losses and their weights: sigmoid, sigmoid_norm, robust, ipo, hinge, simpo, orpo, kto, and sft as a term."""
    beta: Positive | None = None
    """Temperature: how closely the reference is kept to; None takes the usual one of each loss (sigmoid: 0.1)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs thought to be labelled the wrong way round; of sigmoid, sigmoid_norm and robust."""
    simpo_gamma: NonNegative = 1.0
    """Margin that simpo asks for, in rewards."""
    desirable_weight: Positive = 1.0
    """Weight of desirable completions in kto."""
    undesirable_weight: Positive = 1.0
    """Weight of undesirable completions in kto."""
    reference_cache: str | None = None
    """Directory where the reference's log-probs are kept, computed once before training; None computes each step's."""


class ScoredStageSettings(ModelStageSettings, RewardSettings):
    """What every stage has that scores completions of its model."""

    data: DataSettings = DataSettings()
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings()
    reward_model: str | None = None
    """A trained reward model: a directory, a Hub name, or an earlier stage of type rm in the same recipe."""


class PolicyStageSettings(PolicyTrainingSettings, ScoredStageSettings):
    """What every stage has that learns from the scores of its own completions."""

    gold_reward: str | None = None
    """The reward among them that says the truth, for the health checks; None: one that grades, with the weight 0."""
    allow_weak_reward_model: bool = False
    """Train against a reward model that does no better than chance on its held-out pairs."""
    prompts_per_step: Count = 8
    """Prompts sampled at each step."""
    num_generations: Count = 1
    """Completions of each prompt."""
    kl_coef: NonNegative = 0.0
    """Weight of the KL to the reference; 0 needs no reference."""
    max_steps: Count = 100
    """Steps to train."""
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "token_mean"
    """What the loss is averaged over: sequences, the step's tokens (DAPO), or max_completion_length (Dr. GRPO)."""
    epsilon_low: Positive = 0.2
    """The ratio is clipped below at 1 - epsilon_low."""
    epsilon_high: Positive = 0.2
    """The ratio is clipped above at 1 + epsilon_high."""
    mask_truncated: bool = False
    """Leave truncated completions out of the loss (they stay in the baseline)."""
    rollout_trees_saved: Annotated[int, Field(ge=0)] = 4
    """Prompts of each step whose completions keep per-token log-probs on disk; the texts of all are kept."""


class GrpoSettings(PolicyStageSettings):
    """Group-relative policy optimisation (Shao et al. 2024) with programs or a reward model as rewards."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions of each prompt (G): the advantage compares them."""
    num_iterations: Count = 1
    """Optimizer updates on each batch of rollouts; 1 is on-policy."""
    advantage_baseline: Literal["group_mean", "leave_one_out", "none"] = "group_mean"
    """What is subtracted from a reward: the group's mean, the others' mean (RLOO), or nothing."""
    advantage_scale: Literal["group_std", "batch_std", "none"] = "group_std"
    """What an advantage is divided by; Dr. GRPO divides by nothing."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 penalty that holds the policy to the reference; 0 needs no reference."""


class CriticSettings(Settings):
    """The model of values that PPO's advantages are measured against."""

    kind: Literal["auto", "adapter", "shared", "model"] = "auto"
    """An adapter of its own on the policy's base, a head on the policy itself, or a model of its own.

    "auto" takes an adapter where the policy has one, else a model."""
    name_or_path: str | None = None
    """Model that a critic of kind model starts from; None takes the policy's."""
    learning_rate: Positive | None = None
    """Peak learning rate of the critic; None takes the policy's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which the critic alone learns; not for kind shared."""
    value_clip: Positive | None = 0.2
    """Values are clipped to this distance from those at the start of the step; None clips nothing."""
    loss_coef: Positive = 0.5
    """Weight of the value loss beside the policy loss, for kind shared."""


class AdaptiveKlSettings(Settings):
    """A controller that moves kl_coef until the policy is as far from the reference as asked (Ziegler et al. 2019)."""

    target: Positive | None = None
    """KL to the reference to hold, in nats; None keeps kl_coef as it is."""
    scale: Literal["sequence", "token"] = "sequence"
    """What the target is of: the sum over a completion (6.0 is usual), or the mean over its tokens."""
    horizon: Count = 10_000
    """Completions over which the coefficient changes by at most a fifth."""


class PpoSettings(PolicyStageSettings):
    """Proximal policy optimisation (Schulman et al. 2017) with a critic and a KL penalty for each token."""

    critic: CriticSettings = CriticSettings()
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Discount of later rewards, for each token."""
    gae_lambda: Fraction = 0.95
    """Between the one-step advantage (0) and the return minus the value (1)."""
    whiten_advantages: bool = True
    """Scale the advantages of a step's rollouts to mean 0 and deviation 1; returns never are."""
    num_ppo_epochs: Count = 4
    """Passes over each batch of rollouts."""
    num_mini_batches: Count = 1
    """Optimizer updates in each pass."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bound on the loss of a bad token that became likelier, in advantages; 3 is usual, None has none."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy that is added to the objective."""
    target_kl: Positive | None = None
    """Mean KL to the rollouts' policy, per token, at which the passes over them end; None makes them all."""
    kl_coef: NonNegative = 0.05
    """What each nat of log(policy / reference) takes from a token's reward; 0 needs no reference."""
    adaptive_kl: AdaptiveKlSettings = AdaptiveKlSettings()
    missing_eos_penalty: NonNegative = 0.0
    """Taken from the score of a completion that was cut off."""
    bootstrap_truncated: bool = False
    """Let a completion that was cut off end in the critic's value of what would follow, not in 0."""
    reward_scaling: Literal["none", "std", "standardize"] = "none"
    """Divide scores by their running deviation, or take the running mean away first."""
    reward_clip: Positive | None = None
    """Scores are clipped to this size, after scaling; None clips nothing."""


class TaskSettings(ScoredStageSettings):
    """What every stage has that samples a task's held-out problems and grades the answers."""

    task: str = "nano"
    """Name of the task: nano, gsm8k, math500, mmlu, ifeval, alignment, prompts, ...; a wrong one lists them all."""
    data: DataSettings = DataSettings(split="test")
    rewards: dict[str, float] = {}
    """Rewards that score the completions too, beside the task's own grade, and their weights."""
    num_samples: Count = 1
    """Completions of each problem (n); with n > 1, pass@k is reported for k up to n."""
    strict_profile: Literal["r1_zero", "boxed", "gsm8k"] | None = None
    """The one answer format that counts (think and answer tags, a box, "#### 42"); None: the prompt style's."""


class EvalSettings(TaskSettings):
    """Have a model answer a task's held-out problems, and say how well it did."""

    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    score_reference: bool = False
    """Score the answers that come with the prompts (completion, or AlpacaEval's output) too, and count wins."""
    reference: str | None = None
    """Model to measure the KL to: a directory, a name, or an earlier stage of the recipe; None measures none."""


class FrontierSettings(TaskSettings):
    """Follow the policies that a stage kept: the reward trained on and the true score against the KL to its start.

    What is not written here of the model, the rewards and the length of completions is taken over from that stage.
    """

    policies: str
    """Stage of type grpo, ppo, dpo or sft with keep_policy_steps, or the directory of one."""
    num_samples: Count = 8
    """Completions of each problem by each policy; those of the first one also give best-of-n, up to this n."""
    gold: str | None = None
    """The reward among them that says the truth; None: the task's own score."""


class PairsSettings(StageSettings):
    """Make preference pairs of the completions of an earlier stage: of each prompt the best and the worst."""

    completions: str
    """The stage whose completions are paired: grpo or ppo, by rewards, or eval with num_samples above 1, by grades."""
    min_gap: NonNegative = 0.0
    """How much better the chosen completion's reward must be; equal rewards make no pair."""


class CompareSettings(StageSettings):
    """Compare finished evaluations of the same problems: paired tests against a baseline."""

    baseline: str
    """The evaluation that the others are compared with."""
    models: Annotated[list[str], Field(min_length=2)]
    """The evaluations to compare, in the order of the table; the baseline is one of them."""

"""Every setting a user can write, typed, documented and torch-free; a recipe or a flag can hold nothing else.

Floor 0. Names are Hugging Face's or TRL's where one exists for the same thing. Classes have no effects and no
fields computed at run time. The machinery (files, overrides, errors) is in `config.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Settings(BaseModel):
    """Base of all settings: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class ModelSettings(Settings):
    """Which model to load, in which precision, and which of its weights to train."""

    name_or_path: str = "nano"
    """A directory in the Hugging Face layout, a PEFT adapter folder, a Hub name, or "nano", the embedded base."""
    revision: str | None = None
    """Commit, tag or branch on the Hub; None takes the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of frozen weights and matrix products; "auto" takes bfloat16 where the device multiplies it fast."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes cuda, then mps, then cpu."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""
    layout: Literal["tree", "rows"] = "tree"
    """How completions are laid out: prompt computed once per tree, or one padded row for each completion."""
    load_in_4bit: bool = False
    """Keep the frozen base in 4 bits (NF4, double quantisation) under the adapter: QLoRA; needs bitsandbytes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_r: Annotated[int, Field(ge=0)] = 0
    """Rank of the LoRA adapter; 0 trains every weight."""
    lora_alpha: Count = 32
    """LoRA scale: updates are multiplied by lora_alpha / lora_r."""
    lora_dropout: Fraction = 0.0
    """Dropout on the adapter's input; above 0 it makes old and new log-probs differ, so policy stages refuse it."""
    lora_target_modules: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, or "all-linear"."""


class FilterSettings(Settings):
    """Which rows to leave out for their quality; by default none. Plain text counts as a completion."""

    min_prompt_characters: Annotated[int, Field(ge=0)] = 0
    """Leave out rows with a shorter prompt."""
    max_prompt_characters: Count | None = None
    """Leave out rows with a longer prompt; None keeps all."""
    min_completion_characters: Annotated[int, Field(ge=0)] = 0
    """Leave out rows with a shorter completion; of a pair, either one."""
    max_completion_characters: Count | None = None
    """Leave out rows with a longer completion; of a pair, either one. None keeps all."""
    refusals: bool = False
    """Leave out rows whose completion (of a pair, chosen) declines to answer: "I'm sorry, but I can't help you"."""
    languages: list[str] = []
    """Leave out rows in none of these languages (ISO 639-1: en, de, ...); empty keeps all."""
    min_language_probability: Fraction = 0.001
    """Leave out a row where its languages together are less likely than this."""
    duplicates: bool = False
    """Leave out rows whose prompt and completions repeat an earlier row's but for case and white space."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=0.95)] | None = None
    """Leave out rows whose prompt and completions are this similar to an earlier row's (Jaccard; 0.7 is usual)."""


class DataSettings(Settings):
    """Which rows to read and how to turn them into prompts."""

    source: str = "nano"
    """A named source (nano, gsm8k, math, ...), or the path of a JSONL (.gz too), JSON, CSV, Parquet or Arrow file."""
    path: str | None = None
    """Local file or directory to read a named source from, instead of the Hub."""
    split: str = "train"
    """Split of the source: train, validation or test."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the prompts of a source with one split that "test" (or "validation") names; "train" names the others."""
    rows: Count | None = None
    """Read only this many rows (the first ones, after filters); None reads all."""
    prompt_style: str | None = None
    """How a question becomes a prompt (r1_zero, boxed, question, chat, ...); None takes the source's own."""
    columns: dict[str, str] = {}
    """Renames columns: {prompt = "question"} reads the prompt from the column question."""
    max_length: Count = 2048
    """Rows with more prompt + completion tokens than this are dropped and counted."""
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    """How many malformed rows to drop before refusing the file."""
    filters: FilterSettings = FilterSettings()


class SamplingSettings(Settings):
    """How an engine samples completions."""

    temperature: NonNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: Fraction = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    max_completion_length: Count = 256
    """Token limit of a completion; one that reaches it is truncated."""
    stop: list[str] = []
    """Strings that end a completion."""


class EngineSettings(Settings):
    """Which engine generates, and how much it holds at a time."""

    name: Literal["native"] = "native"
    """The engine; native runs wherever torch runs."""
    max_sequences: Count = 256
    """Completions decoded side by side; the others wait and enter as these finish."""


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


class SftSettings(RowStageSettings):
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


class DpoSettings(RowStageSettings):
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


class GrpoSettings(OptimizedStageSettings):
    """Group-relative policy optimisation (Shao et al. 2024) with programs or a reward model as rewards."""

    data: DataSettings = DataSettings()
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings()
    rewards: dict[str, float] = {"r1_zero": 1.0}
    """Reward functions and their weights; a weight of 0 only watches. reward_model is the score of a reward model."""
    reward_model: str | None = None
    """A trained reward model: a directory, a Hub name, or an earlier stage of type rm in the same recipe."""
    allow_weak_reward_model: bool = False
    """Train against a reward model that does no better than chance on its held-out pairs."""
    prompts_per_step: Count = 8
    """Prompts sampled at each step."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions of each prompt (G): the advantage compares them."""
    max_steps: Count = 100
    """Steps to train."""
    num_iterations: Count = 1
    """Optimizer updates on each batch of rollouts; 1 is on-policy."""
    advantage_baseline: Literal["group_mean", "leave_one_out", "none"] = "group_mean"
    """What is subtracted from a reward: the group's mean, the others' mean (RLOO), or nothing."""
    advantage_scale: Literal["group_std", "batch_std", "none"] = "group_std"
    """What an advantage is divided by; Dr. GRPO divides by nothing."""
    loss_aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "token_mean"
    """What the loss is averaged over: sequences, the step's tokens (DAPO), or max_completion_length (Dr. GRPO)."""
    epsilon_low: Positive = 0.2
    """The ratio is clipped below at 1 - epsilon_low."""
    epsilon_high: Positive = 0.2
    """The ratio is clipped above at 1 + epsilon_high."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 penalty that holds the policy to the reference; 0 needs no reference."""
    mask_truncated: bool = False
    """Leave truncated completions out of the loss (they stay in the baseline)."""
    rollout_trees_saved: Annotated[int, Field(ge=0)] = 4
    """Prompts of each step whose completions keep per-token log-probs on disk; the texts of all are kept."""


class EvalSettings(ModelStageSettings):
    """Sample a task's held-out problems and grade the answers."""

    task: str = "nano"
    """Name of the task: nano, gsm8k, math, ..."""
    data: DataSettings = DataSettings(split="test")
    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    engine: EngineSettings = EngineSettings()
    num_samples: Count = 1
    """Completions of each problem (n); with n > 1, pass@k is reported for k up to n."""
    strict_profile: Literal["r1_zero", "boxed", "gsm8k"] | None = None
    """The one answer format that counts (think and answer tags, a box, "#### 42"); None: the prompt style's."""


class PairsSettings(StageSettings):
    """Make preference pairs of the completions of an earlier stage: of each prompt the best and the worst."""

    completions: str
    """The stage whose completions are paired: grpo, by their rewards, or eval with num_samples above 1, by grades."""
    min_gap: NonNegative = 0.0
    """How much better the chosen completion's reward must be; equal rewards make no pair."""


class CompareSettings(StageSettings):
    """Compare finished evaluations of the same problems: paired tests against a baseline."""

    baseline: str
    """The evaluation that the others are compared with."""
    models: Annotated[list[str], Field(min_length=2)]
    """The evaluations to compare, in the order of the table; the baseline is one of them."""

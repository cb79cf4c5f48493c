"""Keys that people bring from other trainers, and what they are called here.

Floor 0: a table of hints for error messages; names on the left are TRL's and transformers'.
"""

from collections.abc import Mapping, Set
from typing import Any

_FOUR_BITS = "load_in_4bit has NF4, double quantisation, and products in model.dtype; nothing else is offered"

FOREIGN_KEYS: dict[str, str] = {
    "bf16": 'precision is model.dtype = "bfloat16"',
    "fp16": 'precision is model.dtype = "bfloat16"; there is no float16',
    "bnb_4bit_compute_dtype": _FOUR_BITS,
    "bnb_4bit_quant_type": _FOUR_BITS,
    "bnb_4bit_use_double_quant": _FOUR_BITS,
    "use_bnb_nested_quant": _FOUR_BITS,
    "load_in_8bit": "frozen weights are in model.dtype or their file's, or in 4 bits: model.load_in_4bit = true",
    "dataset_name": "the rows are named by data.source",
    "cliprange": "write both bounds of the clip, epsilon_low and epsilon_high",
    "cliprange_value": "it is called critic.value_clip",
    "epsilon": "write both bounds of the clip, epsilon_low and epsilon_high",
    "eval_strategy": 'evaluation is a stage of its own: type = "eval"',
    "learning_rate_scheduler": "it is called lr_scheduler_type",
    "logging_steps": "every step is logged",
    "loss_type": 'say what the loss is averaged over: loss_aggregation = "sequence_mean" (TRL\'s grpo), '
    '"token_mean" (dapo) or "constant_length" (dr_grpo)',
    "kl_estimator": "the KL in PPO's reward is k1, log(policy / reference): k3 is no unbiased reward",
    "lam": "it is called gae_lambda",
    "lr": "it is called learning_rate",
    "max_new_tokens": "it is called sampling.max_completion_length",
    "max_prompt_length": "prompts are never cut: rows longer than data.max_length (prompt and completion) are dropped",
    "model_name_or_path": "it is called model.name_or_path",
    "num_epochs": "it is called num_train_epochs",
    "output_dir": "a run lies in RUNS_DIR/NAME: --runs_dir RUNS_DIR --name NAME",
    "push_to_hub": "a run stays on this machine; its artifact/ has the Hub's layout: hf upload owner/name ARTIFACT",
    "custom_reward_function": "a file of reward functions is named by reward_file, each function by rewards.NAME = 1.0",
    "remote_rm_url": "a file of reward functions is named by reward_file; a reward model by reward_model",
    "report_to": "numbers are in metrics.jsonl and events.jsonl of the stage's directory, and are sent nowhere",
    "precompute_ref_log_probs": "name a directory to keep them in: reference_cache",
    "reward_funcs": "rewards is a table of names and weights: rewards.r1_zero = 1.0",
    "reward_weights": "rewards is a table of names and weights: rewards.r1_zero = 1.0",
    "scale_rewards": 'it is called advantage_scale: "group_std" (True), "batch_std" ("batch") or "none" (False)',
    "init_kl_coef": "it is called kl_coef",
    "response_length": "it is called sampling.max_completion_length",
    "target": "the KL to hold is adaptive_kl.target",
    "value_model_path": "a critic of its own is critic.kind = model with critic.name_or_path",
    "vf_coef": "critic and policy have an update each; critic.loss_coef is for critic.kind = shared",
    "whiten_rewards": "advantages are whitened (whiten_advantages), and scores scaled by reward_scaling",
    "use_peft": "an adapter is trained where model.lora_r is above 0",
    "use_vllm": "the engine is engine.name; native is built in and needs no server",
    "warmup_ratio": "warm-up is counted in updates: warmup_steps",
}
BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size", "batch_size")

STEP_UNITS = ("prompts_per_step", "rows_per_step", "documents_per_step")


def foreign_key(name: str, fields: Set[str], siblings: Mapping[str, Any]) -> str | None:
    """Return what a foreign key is called here, with the arithmetic for batch sizes; None where it is not known.

    `siblings` are the values that stand beside the key, as written (text where they came from flags).
    """
    unit = next((unit for unit in STEP_UNITS if unit in fields), None)
    if name in BATCH_KEYS and unit:
        return _batch_arithmetic(unit, siblings)
    if name in ("loss_type", "loss_weights") and "losses" in fields:
        return "losses is a table of names and weights: losses.sigmoid = 1.0"
    if name == "beta" and "kl_coef" in fields:
        return "beta is DPO's temperature; the KL penalty is kl_coef"
    if name in ("num_train_epochs", "num_epochs") and unit and "num_train_epochs" not in fields:
        return f"this stage counts steps: max_steps = epochs x rows of data / {unit}"
    return FOREIGN_KEYS.get(name)


def _batch_arithmetic(unit: str, siblings: Mapping[str, Any]) -> str:
    """Say how many prompts, rows or documents a step has, from the batch keys of a trainer that counts per device."""
    device = _whole(siblings.get("per_device_train_batch_size", siblings.get("batch_size", 8)))
    accumulation = _whole(siblings.get("gradient_accumulation_steps", 1))
    total = device * accumulation
    memory = "memory is set by max_tokens_per_micro_batch alone"
    if unit != "prompts_per_step":
        return (
            f"a whole update is counted: {unit} = {total} ({device} a device x {accumulation} micro-batches); {memory}"
        )
    group = _whole(siblings.get("num_generations", 8))
    prompts = max(1, round(total / group))
    return (
        f"completions are counted there, prompts here: prompts_per_step = {prompts} "
        f"({device} a device x {accumulation} micro-batches / {group} generations); {memory}"
    )


def _whole(value: Any) -> int:
    """Return a written batch size as a number of at least 1; its own fault is reported where it stands."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return 1

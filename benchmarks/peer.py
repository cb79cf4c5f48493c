"""The peer: TRL's trainers, a step at a time, and transformers' `generate`.

A step lasts from the parent's command to the trainer's log of it: batch, sampling, scoring, forward, backward, update.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import load_dataset
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from benchmarks.peer_settings import PeerSettings
from benchmarks.texts import given_completion, varied_reward
from benchmarks.worker import Channel, Task
from benchmarks.workloads import GREEDY_TOKENS, LEARNING_RATE
from posttrain.data.sources import load_rows
from posttrain.seeds import derive_seed
from posttrain.settings import DataSettings, RmSettings


def run(task: Task, channel: Channel) -> None:
    """Run the task's steps until the parent stops them."""
    match task.workload.kind:
        case "generate":
            generate(task, channel)
        case "forward_backward":
            forward_backward(task, channel)
        case kind:
            callback = StepwiseCallback(channel, task)
            trainer = TRAINERS[kind](task, callback)
            callback.trainer = trainer
            trainer.train()


class StepwiseCallback(TrainerCallback):
    """Holds the trainer until the parent asks for a step, and reports each step from its logs."""

    def __init__(self, channel: Channel, task: Task) -> None:
        self.trainer: Any = None
        self._channel = channel
        self._updates = task.workload.num_iterations
        self._logs: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for the first step."""
        self._channel.wait()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Report a step once all its updates are logged, and wait for the next."""
        if logs is None or "loss" not in logs:
            return
        self._logs.append(logs)
        if len(self._logs) == self._updates:
            means = {name: fmean(float(log[name]) for log in self._logs) for name in ("loss", "grad_norm")}
            self._logs = []
            self._channel.report(**means, phases=getattr(self.trainer, "phases", {}))
            self._channel.wait()


def sft_trainer(task: Task, callback: TrainerCallback) -> Trainer:
    """Return TRL's SFT trainer on the task's rows; the loss is of completions only."""
    config = SFTConfig(
        **_arguments(task), max_length=None, padding_free=_settings(task).padding_free, completion_only_loss=True
    )
    return SFTTrainer(
        _adapted(task),
        args=config,
        train_dataset=_dataset(task),
        processing_class=_tokenizer(task),
        callbacks=[callback],
    )


def dpo_trainer(task: Task, callback: TrainerCallback) -> Trainer:
    """Return TRL's DPO trainer on the task's pairs; a copy of the adapter at the start is the reference."""
    config = DPOConfig(**_arguments(task), max_length=None, beta=0.1)
    return DPOTrainer(
        _adapted(task),
        args=config,
        train_dataset=_dataset(task),
        processing_class=_tokenizer(task),
        callbacks=[callback],
    )


def rm_trainer(task: Task, callback: TrainerCallback) -> Trainer:
    """Return TRL's reward trainer on the pairs that our stage trains on, without those that it holds out."""
    from posttrain.stages.rm import held_out_rows  # here, so that it weighs on no other work's memory

    rows = load_rows(DataSettings(source=task.rows), seed=0, kinds=["preference"])
    held_out = held_out_rows(rows, RmSettings())
    config = RewardConfig(**_arguments(task), max_length=None)
    return RewardTrainer(
        _scoring(task),
        args=config,
        train_dataset=_dataset(task).select([i for i, row in enumerate(rows) if row.id not in held_out]),
        processing_class=_tokenizer(task),
        callbacks=[callback],
    )


def grpo_trainer(task: Task, callback: TrainerCallback) -> Trainer:
    """Return TRL's GRPO trainer on the task's prompts, with the token mean as its loss."""
    workload = task.workload
    config = GRPOConfig(
        **_arguments(task),
        num_generations=workload.num_samples,
        max_completion_length=workload.max_completion_length,
        num_iterations=workload.num_iterations,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.2,
        temperature=1.0,
        generation_kwargs={"eos_token_id": list(workload.end_ids) or None},
    )
    trainer = ComparedGrpoTrainer(
        _adapted(task),
        reward_funcs=varied_reward,
        args=config,
        train_dataset=_dataset(task),
        processing_class=_tokenizer(task),
        callbacks=[callback],
    )
    trainer.eos_token_ids = list(workload.end_ids)
    trainer.compared = task
    return trainer


class ComparedGrpoTrainer(GRPOTrainer):
    """TRL's trainer, whose first completions are the ones that our side gets too; it notes how long sampling takes."""

    compared: Task | None = None
    phases: dict[str, float] = {}

    def _generate_single_turn(self, prompt_ids: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
        task, self.compared = self.compared, None
        started = time.perf_counter()
        if task is None:
            sampled = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            size = task.workload.num_samples
            sampled = [given_completion(ids, i % size, task.workload) for i, ids in enumerate(prompt_ids)], None
        self.phases = {"generate": round(time.perf_counter() - started, 4)}
        return sampled


TRAINERS = {"sft": sft_trainer, "dpo": dpo_trainer, "rm": rm_trainer, "grpo": grpo_trainer}


def generate(task: Task, channel: Channel) -> None:
    """Sample with transformers' `generate`, adapter merged; the first step takes the likeliest tokens."""
    workload = task.workload
    model = _adapted(task).merge_and_unload().eval()
    tokenizer = _tokenizer(task)
    tokenizer.padding_side = "left"
    prompts = [row["prompt"] for row in _dataset(task)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    width = inputs["input_ids"].shape[1]
    end_ids = torch.tensor(list(workload.end_ids), dtype=torch.long)
    shared = {"pad_token_id": tokenizer.pad_token_id, "disable_compile": True}
    model.generation_config.eos_token_id = None
    channel.wait()
    with _autocast(task):
        likeliest = model.generate(**inputs, **shared, do_sample=False, max_new_tokens=GREEDY_TOKENS)
    channel.report(greedy=likeliest[:, width:].tolist())
    while True:
        channel.wait()
        with _autocast(task):
            sampled = model.generate(
                **inputs,
                **shared,
                do_sample=True,
                top_k=0,
                num_return_sequences=workload.num_samples,
                max_new_tokens=workload.max_completion_length,
                eos_token_id=end_ids.tolist() or None,
            )[:, width:]
        ended = torch.isin(sampled, end_ids).cumsum(dim=1)
        channel.report(tokens=int((ended - torch.isin(sampled, end_ids).long() == 0).sum()))


def forward_backward(task: Task, channel: Channel) -> None:
    """Compute transformers' own mean loss of one batch, and its gradient."""
    model = _adapted(task).train()
    tokenizer = _tokenizer(task)
    prompts = [tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in _dataset(task)]
    pairs = [(ids, given_completion(ids, 0, task.workload)) for ids in prompts]
    inputs = [torch.tensor([*prompt, *completion]) for prompt, completion in pairs]
    labels = [torch.tensor([-100] * len(prompt) + completion) for prompt, completion in pairs]
    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in inputs], batch_first=True),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    while True:
        channel.wait()
        with _autocast(task):
            loss = model(**batch, use_cache=False).loss
        torch.autograd.backward(loss)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        channel.report(loss=loss.item(), grad_norm=float(torch.nn.utils.get_total_norm(gradients)))
        for parameter in parameters:
            parameter.grad = None


def _arguments(task: Task) -> dict[str, Any]:
    """Return what all of TRL's configurations share: our settings under its names."""
    workload = task.workload
    at_a_time = min(_settings(task).rows_per_forward or workload.sequences, workload.sequences)
    return {
        "output_dir": task.directory,
        "per_device_train_batch_size": at_a_time,
        "gradient_accumulation_steps": workload.sequences // at_a_time,
        "max_steps": 10_000,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "bf16": _settings(task).autocast,
        "gradient_checkpointing": False,
        "seed": 0,
    }


def _settings(task: Task) -> PeerSettings:
    return PeerSettings(**task.peer)


def _adapted(task: Task) -> Any:
    """Return the base with the adapter, which is trained in float32, as TRL's own adapters are."""
    base = AutoModelForCausalLM.from_pretrained(task.base, dtype=_weights_dtype(task), **_quantization(task))
    return PeftModel.from_pretrained(base, task.adapter, is_trainable=True)


def _quantization(task: Task) -> dict[str, Any]:
    if not task.workload.load_in_4bit:
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_weights_dtype(task),
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def _scoring(task: Task) -> Any:
    """Return the base as a classification model with the adapter, and with the score head that our side draws."""
    base = AutoModelForSequenceClassification.from_pretrained(task.base, num_labels=1, dtype=_weights_dtype(task))
    config = PeftConfig.from_pretrained(task.adapter)
    config.task_type, config.inference_mode = "SEQ_CLS", False
    model = get_peft_model(base, config)
    weights = load_file(Path(task.adapter) / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(derive_seed(0, "score-head"))
    size = base.config.hidden_size
    head = torch.empty(1, size).normal_(std=1 / math.sqrt(size + 1), generator=generator)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.copy_(weights[name.replace(".default", "")])
        elif "score" in name and parameter.requires_grad:  # peft trains a copy of the head
            parameter.data.copy_(head)
    return model


def _weights_dtype(task: Task) -> torch.dtype:
    dtype = getattr(torch, _settings(task).weights_dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _tokenizer(task: Task) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(task.base)


def _dataset(task: Task) -> Any:
    return load_dataset("json", data_files=task.rows, split="train", cache_dir=task.directory)


def _autocast(task: Task) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16) if _settings(task).autocast else nullcontext()

"""Our side: the stages themselves, run a step at a time, and the engine alone.

The stage functions are those of a recipe, with their logs and rollout files; only the loop waits for the parent.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.texts import given_completion, varied_reward
from benchmarks.worker import Channel, Task
from benchmarks.workloads import GREEDY_TOKENS, LEARNING_RATE, Workload
from posttrain.data.chat import render_prompt
from posttrain.data.sources import load_rows
from posttrain.data.trees import build_batch
from posttrain.engines import ENGINES
from posttrain.engines.native import NativeEngine
from posttrain.models.lm import LoadedModel, load_model, load_tokenizer
from posttrain.models.logprobs import completion_logprobs
from posttrain.pipeline.stages import STAGE_TYPES
from posttrain.records import Branch, Completion, Prompt, StopReason, TokenTree
from posttrain.rewards import REWARDS
from posttrain.runs.directory import StageRun, TrainerState
from posttrain.runs.display import NoDisplay
from posttrain.settings import (
    CriticSettings,
    DataSettings,
    EngineSettings,
    ModelSettings,
    OptimizedStageSettings,
    SamplingSettings,
)

MAX_LENGTH = 4096  # tokens of prompt and completion: longer than any workload's


def run(task: Task, channel: Channel) -> None:
    """Run the task's steps until the parent stops them."""
    match task.workload.kind:
        case "generate":
            generate(task, channel)
        case "forward_backward":
            forward_backward(task, channel)
        case _:
            run_stage(task, channel)


def run_stage(task: Task, channel: Channel) -> None:
    """Run a training stage in a directory of its own."""
    workload = task.workload
    REWARDS["varied"] = varied_reward
    ENGINES["native"] = lambda policy, settings, should_stop: ComparedEngine(policy, settings, should_stop, workload)
    settings = stage_settings(task)
    run = SteppedRun.open(
        Path(task.directory) / "run", settings=settings, fingerprint="benchmark", display=NoDisplay(), overwrite=True
    )
    run.channel = channel
    with run:
        STAGE_TYPES[workload.kind].load()(settings, run)


def stage_settings(task: Task) -> OptimizedStageSettings:
    """Return the settings of the workload's stage: those that the peer has too."""
    workload = task.workload
    values: dict[str, Any] = {
        "model": _model(task),
        "data": DataSettings(source=task.rows, max_length=MAX_LENGTH),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_tokens_per_micro_batch": workload.micro_batch_tokens,
        "max_steps": 10_000,
        "save_steps": 10_000,
    }
    if workload.kind in ("grpo", "ppo"):
        values |= {
            "prompts_per_step": workload.rows,
            "num_generations": workload.num_samples,
            "kl_coef": workload.kl_coef,
            "num_iterations" if workload.kind == "grpo" else "num_ppo_epochs": workload.num_iterations,
            "rewards": {"varied": 1.0},
            "sampling": SamplingSettings(max_completion_length=workload.max_completion_length),
        }
    else:
        values["rows_per_step"] = workload.rows
    if workload.kind == "ppo":
        values["critic"] = CriticSettings.model_validate({"kind": workload.critic})
    settings = STAGE_TYPES[workload.kind].settings(**values)
    assert isinstance(settings, OptimizedStageSettings)
    return settings


class SteppedRun(StageRun):
    """A run whose steps wait for the parent, and report to it when all of a step is done."""

    channel: Channel
    _metrics: Mapping[str, float] = {}

    def steps(self, max_steps: int) -> Iterator[int]:
        """Yield a step when the parent asks for it."""
        for step in super().steps(max_steps):
            self.channel.wait()
            yield step

    def log(
        self, step: int, metrics: Mapping[str, float], *, rollouts: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Log as ever, and keep the metrics for the report."""
        super().log(step, metrics, rollouts=rollouts)
        self._metrics = metrics

    def save(self, step: int, trainer_state: Callable[[], TrainerState]) -> None:
        """Save as ever, and report the step."""
        super().save(step, trainer_state)
        phases = {name: round(seconds, 4) for name, seconds in self._phase_seconds.items()}
        self.channel.report(loss=self._metrics["loss"], grad_norm=self._metrics["grad_norm"], phases=phases)


class ComparedEngine(NativeEngine):
    """The native engine with the workload's end ids, whose first completions are the ones that the peer gets too."""

    def __init__(
        self, policy: LoadedModel, settings: EngineSettings, should_stop: Callable[[], bool], workload: Workload
    ) -> None:
        super().__init__(replace(policy, eos_ids=frozenset(workload.end_ids)), settings, should_stop)
        self._workload: Workload | None = workload

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        *,
        num_samples: int,
        seeds: Sequence[Sequence[int]],
        done: MutableMapping[tuple[int, int], Completion] | None = None,
    ) -> list[list[Completion]]:
        """Return the given completions at the first call, sampled ones after it."""
        workload, self._workload = self._workload, None
        if workload is None:
            return super().generate(prompts, sampling, num_samples=num_samples, seeds=seeds, done=done)
        return [[_given(prompt, sample, workload) for sample in range(num_samples)] for prompt in prompts]


def _given(prompt: Prompt, sample: int, workload: Workload) -> Completion:
    ids = given_completion(prompt.ids, sample, workload)
    return Completion(tuple(ids), (0.0,) * len(ids), StopReason.LENGTH, "")


def generate(task: Task, channel: Channel) -> None:
    """Sample completions; the first step takes the likeliest tokens, for comparison."""
    workload = task.workload
    loaded = load_model(_model(task), seed=0)
    engine = NativeEngine(replace(loaded, eos_ids=frozenset(workload.end_ids)), EngineSettings())
    del loaded
    prompts = _prompts(task)
    seeds = [[prompt * workload.num_samples + i for i in range(workload.num_samples)] for prompt in range(len(prompts))]
    greedy = SamplingSettings(temperature=0.0, max_completion_length=GREEDY_TOKENS)
    channel.wait()
    likeliest = engine.generate(prompts, greedy, num_samples=1, seeds=[row[:1] for row in seeds])
    channel.report(greedy=[list(completion.ids) for (completion,) in likeliest])
    sampling = SamplingSettings(max_completion_length=workload.max_completion_length)
    while True:
        channel.wait()
        completions = engine.generate(prompts, sampling, num_samples=workload.num_samples, seeds=seeds)
        channel.report(tokens=sum(len(completion.ids) for group in completions for completion in group))


def _prompts(task: Task) -> list[Prompt]:
    tokenizer = load_tokenizer(_model(task))
    return [render_prompt(row, tokenizer) for row in load_rows(DataSettings(source=task.rows), seed=0)]


def forward_backward(task: Task, channel: Channel) -> None:
    """Compute the mean loss of one micro-batch and its gradient."""
    loaded = load_model(_model(task), seed=0)
    completions = [(prompt, given_completion(prompt.ids, 0, task.workload)) for prompt in _prompts(task)]
    trees = [TokenTree(prompt.ids, (Branch(tuple(ids), (1,) * len(ids)),)) for prompt, ids in completions]
    batch = build_batch(trees, layout=loaded.layout, pad_id=loaded.pad_id)
    parameters = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    while True:
        channel.wait()
        tokens = completion_logprobs(loaded.model, batch)
        loss = -tokens.logprobs.sum() / batch.completion_mask.sum()
        torch.autograd.backward(loss)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        channel.report(loss=loss.item(), grad_norm=float(torch.nn.utils.get_total_norm(gradients)))
        for parameter in parameters:
            parameter.grad = None


def _model(task: Task) -> ModelSettings:
    values = {"name_or_path": task.adapter, "dtype": task.dtype, "device": "cpu"}
    return ModelSettings.model_validate(values | {"load_in_4bit": task.workload.load_in_4bit})

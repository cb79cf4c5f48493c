"""Categories and summaries by hand; the stage on a real model, resumed and seeded."""

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.errors import ConfigError, DataError, Stopped
from posttrain.evals import evaluate as evaluation
from posttrain.evals.evaluate import evaluate
from posttrain.evals.mathematics import grade_sample, summarise_grades
from posttrain.evals.samples import Category, Sample, summarise
from posttrain.records import Completion, Prompt, StopReason
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import DataSettings, EvalSettings, ModelSettings, SamplingSettings

RIGHT = "6 * 7 </think> <answer>42</answer>"


def prompt(id: str, **columns: object) -> Prompt:
    return Prompt(id=id, ids=(1,), content="6 * 7?", columns=columns)


def completion(text: str, stop: StopReason = StopReason.EOS, tokens: int = 3) -> Completion:
    return Completion(ids=(5,) * tokens, engine_logprobs=(-0.1,) * tokens, stop_reason=stop, text=text)


def graded(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> Iterator[Sample]:
    for of, group in zip(prompts, completions, strict=True):
        for index, one in enumerate(group):
            yield grade_sample(of, index, one, "r1_zero")


@pytest.mark.parametrize(
    ("text", "stop", "category", "strict", "lenient"),
    [
        (RIGHT, StopReason.EOS, Category.CORRECT, True, True),
        (RIGHT, StopReason.LENGTH, Category.CORRECT, True, True),
        ("</think> <answer>41</answer>", StopReason.EOS, Category.WRONG_ANSWER, False, False),
        ("it is 42", StopReason.EOS, Category.FORMAT_FAILURE, False, True),
        ("it is 42", StopReason.LENGTH, Category.TRUNCATED, False, False),
        ("</think> <answer></answer>", StopReason.EOS, Category.FORMAT_FAILURE, False, False),
        ("</think> <answer>1e999999</answer>", StopReason.EOS, Category.COULD_NOT_GRADE, False, False),
    ],
)
def test_categories(text: str, stop: StopReason, category: Category, strict: bool, lenient: bool) -> None:
    sample = grade_sample(prompt("a", answer="42"), 0, completion(text, stop), "r1_zero")
    assert (sample.category, sample.strict, sample.lenient) == (category, strict, lenient)


def test_a_strictly_right_answer_is_leniently_right() -> None:
    reopened = "\\boxed{42} <think>"
    sample = grade_sample(prompt("a", answer="42"), 0, completion(reopened), "boxed")
    assert (sample.strict, sample.lenient) == (False, False)


def test_summary_by_hand() -> None:
    prompts = [prompt("a", answer="42"), prompt("b", answer="7"), prompt("c", answer=" ")]
    completions = [
        [completion(RIGHT, tokens=4), completion("it is 42", tokens=8)],
        [completion("it is", StopReason.LENGTH, tokens=10), completion("</think> <answer>8</answer>", tokens=2)],
        [completion(RIGHT, tokens=1000), completion(RIGHT, tokens=1000)],
    ]
    rows = [sample.row() for sample in graded(prompts, completions)]
    found = summarise(rows) | summarise_grades(rows)
    assert (found["problems"], found["num_samples"], found["ungradable_problems"]) == (2, 2, 1)
    assert found["score"]["mean"] == found["strict"]["accuracy"] == 0.25
    assert found["strict"]["low"] < 0.25 < found["strict"]["high"]
    assert found["lenient"]["accuracy"] == 0.5
    assert found["categories"] == {
        "correct": 0.25, "wrong_answer": 0.25, "format_failure": 0.25, "truncated": 0.25, "could_not_grade": 0.0,
        "scored": 0.0,
    }  # fmt: skip
    assert found["pass_at_k"] == {"1": 0.25, "2": 0.5}
    assert found["mean_length"] == 6.0
    assert found["clipped_ratio"] == 0.25


def test_samples_without_any_usable_gold_are_refused() -> None:
    with pytest.raises(DataError, match="none of the 1 samples has a score: no usable gold"):
        summarise([sample.row() for sample in graded([prompt("a", answer=" ")], [[completion(RIGHT)]])])


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with a byte-level tokenizer, as the Hub lays models out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def settings(model_directory: Path, tmp_path: Path) -> EvalSettings:
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(5)))
    return EvalSettings(
        model=ModelSettings(name_or_path=str(model_directory), dtype="float32", device="cpu"),
        data=DataSettings(source=str(data)),
        sampling=SamplingSettings(temperature=1.0, max_completion_length=8),
        num_samples=2,
        seed=3,
    )


def open_run(path: Path, settings: EvalSettings) -> StageRun:
    return StageRun.open(path, settings=settings, fingerprint="f", display=NoDisplay())


def artifact(run: Path) -> tuple[list[dict], dict]:
    return read_rollouts(run / "artifact" / "samples.parquet"), json.loads(
        (run / "artifact" / "summary.json").read_bytes()
    )


def test_the_stage_publishes_samples_and_summary(settings: EvalSettings, tmp_path: Path) -> None:
    with open_run(tmp_path / "eval", settings) as run:
        evaluate(settings, run)
        assert run.finished
    samples, summary = artifact(tmp_path / "eval")
    assert len(samples) == 10
    assert {sample["gold"] for sample in samples} == {"1", "2", "3", "4", "5"}
    assert len({sample["completion"] for sample in samples}) == 10  # every sample has a seed of its own
    assert (summary["task"], summary["strict_profile"], summary["problems"]) == ("problems", "boxed", 5)
    assert summary["sampling"]["temperature"] == 1.0
    assert sum(summary["categories"].values()) == pytest.approx(1.0)


class StopAfterOneStep(NoDisplay):
    """Asks the process to stop, as a user does, once the first batch is logged."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_stage_resumes_with_the_same_samples(
    settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tmp_path / "whole", settings) as run:
        evaluate(settings, run)
    monkeypatch.setattr(evaluation, "PROBLEMS_PER_STEP", 2)
    with (
        stop_on_signals(),
        pytest.raises(Stopped),
        StageRun.open(tmp_path / "parts", settings=settings, fingerprint="f", display=StopAfterOneStep()) as run,
    ):
        evaluate(settings, run)
    with open_run(tmp_path / "parts", settings) as run:
        assert run.checkpoint is not None
        assert run.checkpoint.step == 1
        evaluate(settings, run)
    (parts, part_summary), (whole, whole_summary) = artifact(tmp_path / "parts"), artifact(tmp_path / "whole")
    logprobs = [[row.pop("logprob") for row in rows] for rows in (parts, whole)]
    assert parts == whole
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-5)  # batches of 2 problems against one of 5: rounding
    means = [summary.pop("mean_logprob") for summary in (part_summary, whole_summary)]
    assert means[0] == pytest.approx(means[1], abs=1e-5)
    assert part_summary == whole_summary


class StopWhileGenerating(NoDisplay):
    """Asks the process to stop once the second batch has begun."""

    def __init__(self) -> None:
        self.generating = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.generating += name == "generate"
        if self.generating == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield


def test_a_stop_while_generating_keeps_the_finished_batches(
    settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "PROBLEMS_PER_STEP", 2)
    with (
        stop_on_signals(),
        pytest.raises(Stopped, match="saved up to step 1"),
        StageRun.open(tmp_path / "eval", settings=settings, fingerprint="f", display=StopWhileGenerating()) as run,
    ):
        evaluate(settings, run)
    with open_run(tmp_path / "eval", settings) as run:
        assert run.checkpoint is not None
        assert run.checkpoint.step == 1


def test_the_users_strict_profile_is_graded_by(settings: EvalSettings, tmp_path: Path) -> None:
    with open_run(tmp_path / "eval", settings) as run:
        evaluate(settings.model_copy(update={"strict_profile": "r1_zero"}), run)
    samples, summary = artifact(tmp_path / "eval")
    assert summary["strict_profile"] == "r1_zero"
    assert {sample["reason"] for sample in samples} == {"not in the form ... </think> <answer>...</answer>"}


def test_faults_are_told_before_the_model_loads(settings: EvalSettings, tmp_path: Path) -> None:
    nowhere = ModelSettings(name_or_path=str(tmp_path / "no such model"))
    greedy = settings.model_copy(update={"model": nowhere, "sampling": SamplingSettings(temperature=0.0)})
    with open_run(tmp_path / "greedy", greedy) as run, pytest.raises(ConfigError, match="are all the same"):
        evaluate(greedy, run)
    data = tmp_path / "gold.jsonl"
    data.write_text('{"prompt": "1 + 1 =", "gold": "2"}\n')
    ungraded = settings.model_copy(update={"model": nowhere, "data": DataSettings(source=str(data))})
    with open_run(tmp_path / "gold", ungraded) as run, pytest.raises(DataError, match=r"gold\.jsonl:1.*found gold"):
        evaluate(ungraded, run)


def test_another_seed_gives_other_samples(settings: EvalSettings, tmp_path: Path) -> None:
    for seed in (3, 4):
        with open_run(tmp_path / str(seed), settings) as run:
            evaluate(settings.model_copy(update={"seed": seed}), run)
    (first, _), (second, _) = artifact(tmp_path / "3"), artifact(tmp_path / "4")
    assert [sample["problem_id"] for sample in first] == [sample["problem_id"] for sample in second]
    assert not {sample["completion"] for sample in first} & {sample["completion"] for sample in second}

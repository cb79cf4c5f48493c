"""Choices by log-prob: equal to transformers' plain rows, whatever the budget; metrics by hand; the stage, resumed."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.data.chat import render_choices
from posttrain.data.rows import Row, build_row
from posttrain.engines import Interrupted
from posttrain.errors import ConfigError, DataError, Stopped
from posttrain.evals import choices as choices_module
from posttrain.evals import evaluate as evaluation
from posttrain.evals.checks import check_settings, evaluation_problems
from posttrain.evals.choices import answer_sample, choice_logprobs, headline, pick, summarise_choices
from posttrain.evals.evaluate import evaluate
from posttrain.evals.samples import Sample, summarise
from posttrain.models.lm import load_model
from posttrain.records import Branch, TokenTree
from posttrain.runs.directory import StageRun
from posttrain.runs.display import Display, NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import DataSettings, EvalSettings, ModelSettings, SamplingSettings
from tests.conftest import write_rows

CLOSE = 5e-5  # nats, float32, of log-probs around 10
QUESTIONS = [
    {
        "question": f"Tom has {i} apples and buys {i + 2} more. How many apples does he have?",
        "choices": [f"{2 * i} apples", f"He has {2 * i + 2} apples now", "none"][: 2 + i % 2],
        "answer": i % 2,
        "subject": ("addition", "words")[i % 2],
    }
    for i in range(7)
]


def row_of(record: Mapping[str, Any], style: str = "cloze") -> Row:
    question = dict(record)
    return build_row(question, id=f"id-{question['question']}", kind="choices", origin="q:1", prompt_style=style)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def directory(request: Any, save_model: Callable[..., str], nano_tokenizer: PreTrainedTokenizerFast) -> str:
    return save_model(request.param, nano_tokenizer, initializer_range=0.3)


@pytest.fixture(scope="module")
def trees(nano_tokenizer: PreTrainedTokenizerFast) -> list[TokenTree]:
    return [render_choices(row_of(question), nano_tokenizer) for question in QUESTIONS]


def settings_of(directory: str, **changes: Any) -> ModelSettings:
    return ModelSettings(name_or_path=directory, dtype="float32", device="cpu", **changes)


def plain_logprobs(directory: str, tree: TokenTree) -> list[list[float]]:
    """Return what transformers says of each choice in a row of its own."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    found = []
    for branch in tree.branches:
        ids = torch.tensor([[*tree.prompt_ids, *branch.ids]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(tree.prompt_ids)
        found.append([float(logprobs[start + at - 1, id]) for at, id in enumerate(branch.ids)])
    return found


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_logprobs_are_those_of_separate_plain_rows(directory: str, trees: list[TokenTree], layout: str) -> None:
    loaded = load_model(settings_of(directory, layout=layout), seed=0, trainable=False)
    found = choice_logprobs(loaded, trees, 4096)
    for tree, own in zip(trees, found, strict=True):
        for ours, theirs in zip(own, plain_logprobs(directory, tree), strict=True):
            assert ours == pytest.approx(theirs, abs=CLOSE)


def test_another_prompt_gives_other_logprobs(directory: str, trees: list[TokenTree]) -> None:
    loaded = load_model(settings_of(directory), seed=0, trainable=False)
    shorter = TokenTree(trees[0].prompt_ids[1:], trees[0].branches)
    found, other = choice_logprobs(loaded, [trees[0], shorter], 4096)
    assert abs(found[0][0] - other[0][0]) > 100 * CLOSE


def test_neither_the_budget_nor_the_batch_changes_a_number(directory: str, trees: list[TokenTree]) -> None:
    loaded = load_model(settings_of(directory), seed=0, trainable=False)
    whole = choice_logprobs(loaded, trees, 4096)
    for budget in (1, 60, 200):
        for found, expected in zip(choice_logprobs(loaded, trees, budget), whole, strict=True):
            for ours, theirs in zip(found, expected, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    alone = [choice_logprobs(loaded, [tree], 4096)[0] for tree in trees]
    for found, expected in zip(alone, whole, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    assert choice_logprobs(loaded, [], 4096) == []


def test_equal_choices_are_exactly_equal(directory: str, trees: list[TokenTree]) -> None:
    loaded = load_model(settings_of(directory), seed=0, trainable=False)
    one, other = trees[0].branches
    first, second, third = choice_logprobs(loaded, [TokenTree(trees[0].prompt_ids, (one, other, one))], 4096)[0]
    assert first == third
    assert first != second


def test_a_stop_is_seen_between_two_passes(directory: str, trees: list[TokenTree]) -> None:
    loaded = load_model(settings_of(directory), seed=0, trainable=False)
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        choice_logprobs(loaded, trees, 1, should_stop=lambda: next(asked))


# --- metrics by hand -------------------------------------------------------------------------------------------


def judged(
    logprobs: list[list[float]], choices: list[str], answer: int, *, score: str = "acc", seed: int = 0
) -> Sample:
    row = row_of({"question": f"{choices}?", "choices": choices, "answer": answer})
    branches = tuple(Branch((place,) * len(each), (1,) * len(each)) for place, each in enumerate(logprobs))
    return answer_sample(row, TokenTree((0,), branches), logprobs, score=score, seed=0)


def test_acc_sums_and_acc_norm_divides_by_bytes() -> None:
    logprobs = [[-1.0, -1.0], [-3.0]]  # 2 nats over "ab", 3 over "abcd"
    sample = judged(logprobs, ["ab", "abcd"], 0)
    assert (sample.further["acc"], sample.further["acc_norm"]) == (1.0, 0.0)
    assert (sample.score, sample.further["chosen"], sample.further["right"]) == (1.0, 0, 0)
    normed = judged(logprobs, ["ab", "abcd"], 0, score="acc_norm")
    assert (normed.score, normed.further["chosen"], normed.completion, normed.extracted) == (0.0, 1, " abcd", "abcd")
    assert normed.category == "wrong_answer"
    assert (normed.num_tokens, normed.logprob) == (1, -3.0)
    assert judged([[-2.0], [-3.0]], ["ab", "é" * 2], 1).further["acc_norm"] == 1.0  # 4 bytes, though 2 characters


def test_the_probability_of_the_right_choice_is_among_the_choices() -> None:
    sample = judged([[-1.0], [-1.0, -1.0]], ["a", "b"], 1)
    assert sample.further["choice_logprobs"] == [-1.0, -2.0]
    assert sample.further["right_probability"] == pytest.approx(1 / (1 + math.e))
    assert judged([[-2000.0], [-3000.0]], ["a", "b"], 0).further["right_probability"] == pytest.approx(1.0)


def test_ties_are_split_by_a_fair_draw_that_a_question_keeps() -> None:
    drawn = [pick([-1.0, -2.0, -1.0, -1.0 + 1e-8], seed=0, key=f"question {i}") for i in range(3000)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert abs(counts[[0, 2, 3]] - 1000).max() < 5 * math.sqrt(3000 * (1 / 3) * (2 / 3))
    again = [pick([-1.0, -2.0, -1.0, -1.0], seed=0, key=f"question {i}") for i in range(3000)]
    assert again == drawn
    assert [pick([-1.0, -1.0], seed=1, key=str(i)) for i in range(50)] != [
        pick([-1.0, -1.0], seed=0, key=str(i)) for i in range(50)
    ]
    assert judged([[-1.0], [-1.0]], ["a", "b"], 0).further["tied"]
    assert not judged([[-1.0], [-1.1]], ["a", "b"], 0).further["tied"]


def test_a_summary_by_hand() -> None:
    samples = [
        judged([[math.log(0.8)], [math.log(0.2)]], ["a", "b"], 0),
        judged([[math.log(0.8)], [math.log(0.2)]], ["c", "d"], 1),
        judged([[math.log(0.35)], [math.log(0.65)]], ["e", "f"], 1),
        judged([[math.log(0.05)], [math.log(0.95)]], ["g", "h"], 1),
    ]
    rows = [sample.row() for sample in samples]
    found = summarise(rows) | summarise_choices(rows)
    error = np.std([1, 0, 1, 1], ddof=1) / 2
    assert found["results"] == pytest.approx(
        {"acc,none": 0.75, "acc_stderr,none": error, "acc_norm,none": 0.75, "acc_norm_stderr,none": error}
    )
    assert found["score"]["mean"] == found["acc"]["mean"] == 0.75
    assert found["acc"]["low"] < 0.75 < found["acc"]["high"]
    assert found["right_probability"] == pytest.approx((0.8 + 0.2 + 0.65 + 0.95) / 4)
    assert found["calibration"]["ece"] == pytest.approx((2 * 0.3 + 0.35 + 0.05) / 4)
    assert [row["count"] for row in found["calibration"]["reliability"]] == [1, 2, 1]
    assert (found["ties"], found["categories"]["correct"], found["clipped_ratio"]) == (0.0, 0.75, 0.0)
    line = headline({"task": "mine", **found})
    assert line.startswith("mine: 75.0% right (95% CI ")
    assert "acc 75.0%, acc_norm 75.0%, calibration error 0.250, 4 questions" in line


# --- the stage -------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(save_model: Callable[..., str], nano_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> EvalSettings:
    model = save_model("llama", nano_tokenizer, initializer_range=0.3)
    source = write_rows(tmp_path / "fruit.jsonl", QUESTIONS)
    data = DataSettings(source=source, prompt_style="cloze")
    return EvalSettings(task="choices", model=settings_of(model), data=data, seed=3)


def run_stage(path: Path, settings: EvalSettings, display: Display | None = None) -> tuple[list[dict], dict]:
    with StageRun.open(path, settings=settings, fingerprint="f", display=display or NoDisplay()) as run:
        evaluate(settings, run)
    artifact = path / "artifact"
    return read_rollouts(artifact / "samples.parquet"), json.loads((artifact / "summary.json").read_bytes())


def test_the_stage_publishes_what_the_choices_are_worth(
    settings: EvalSettings, nano_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    samples, summary = run_stage(tmp_path / "eval", settings)
    assert (summary["task"], summary["kind"], summary["problems"], summary["num_samples"]) == ("fruit", "choices", 7, 1)
    assert set(summary["results"]) == {"acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"}
    assert summary["score"]["mean"] == summary["results"]["acc_norm,none"]
    assert {name: each["problems"] for name, each in summary["subsets"]["subject"].items()} == {
        "addition": 4,
        "words": 3,
    }
    assert (summary["strict_profile"], summary["sampling"], summary["scores"]) == (None, {}, {})
    for sample, question in zip(samples, QUESTIONS, strict=True):
        tree = render_choices(row_of(question), nano_tokenizer)
        sums = [math.fsum(each) for each in plain_logprobs(settings.model.name_or_path, tree)]
        assert sample["choice_logprobs"] == pytest.approx(sums, abs=10 * CLOSE)
        assert sample["acc"] == float(np.argmax(sums) == question["answer"])
        assert sample["gold"] == question["choices"][question["answer"]]
        assert sample["stop_reason"] == ""
    events = (tmp_path / "eval" / "events.jsonl").read_text()
    assert "addition" in events


class StopAt(NoDisplay):
    """Asks the process to stop once a step is logged, or while it is scored."""

    def __init__(self, step: int, *, while_scoring: bool = False) -> None:
        self.step, self.while_scoring, self.scored = step, while_scoring, 0

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.step and not self.while_scoring:
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.scored += 1
        if self.while_scoring and self.scored == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        yield


@pytest.mark.parametrize(("display", "saved"), [(StopAt(1), 1), (StopAt(2, while_scoring=True), 1)])
def test_a_stopped_evaluation_resumes_with_equal_results(
    settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: StopAt, saved: int
) -> None:
    monkeypatch.setattr(evaluation, "SAMPLES_PER_STEP", 3)
    whole = run_stage(tmp_path / "whole", settings)
    with stop_on_signals(), pytest.raises(Stopped, match=f"saved up to step {saved}"):
        run_stage(tmp_path / "parts", settings, display)
    assert run_stage(tmp_path / "parts", settings) == whole


def test_batch_and_budget_change_no_verdict(
    settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_stage(tmp_path / "whole", settings)
    monkeypatch.setattr(evaluation, "SAMPLES_PER_STEP", 1)
    monkeypatch.setattr(choices_module, "FORWARD_TOKENS", 16)
    single, _ = run_stage(tmp_path / "single", settings)
    for one, other in zip(whole, single, strict=True):
        assert one["choice_logprobs"] == pytest.approx(other["choice_logprobs"], abs=1e-6, rel=1e-6)
        assert (one["chosen"], one["score"]) == (other["chosen"], other["score"])


def test_overlong_questions_are_dropped_and_counted(settings: EvalSettings, tmp_path: Path) -> None:
    long = {**QUESTIONS[0], "question": "How many apples? " * 60}
    source = write_rows(tmp_path / "long.jsonl", [*QUESTIONS, long])
    data = settings.data.model_copy(update={"source": source, "max_length": 100})
    _, summary = run_stage(tmp_path / "eval", settings.model_copy(update={"data": data}))
    assert (summary["problems"], summary["dropped_rows"]) == (7, 1)


def test_few_shot_examples_change_the_prompt_and_the_template_hash(settings: EvalSettings, tmp_path: Path) -> None:
    def summary(name: str, **changes: Any) -> dict:
        data = settings.data.model_copy(update={"held_out": 0.5, "split": "test", **changes})
        return run_stage(tmp_path / name, settings.model_copy(update={"data": data}))[1]

    none, one, two = summary("none"), summary("one", num_fewshot=1), summary("two", num_fewshot=2)
    assert len({each["template_hash"] for each in (none, one, two)}) == 3
    assert none["data_fingerprint"] == one["data_fingerprint"] == two["data_fingerprint"]
    assert (none["num_fewshot"], two["num_fewshot"]) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sampling": SamplingSettings(temperature=1.0)}, "sampling"),
        ({"num_samples": 2, "sampling": SamplingSettings(temperature=1.0)}, "num_samples"),
        ({"rewards": {"math_answer": 1.0}}, "rewards"),
        ({"strict_profile": "boxed"}, "strict_profile"),
    ],
)
def test_settings_of_sampling_are_refused(settings: EvalSettings, changes: dict[str, Any], key: str) -> None:
    found = dict(evaluation_problems(settings.model_copy(update=changes)))
    assert f"{key} has no meaning for task choices" in str(found[key])
    assert f"remove {key}" in str(found[key].fix)


def test_a_style_of_another_kind_of_task_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"prompt style boxed is not for task mmlu; styles: letters, letters_chat, cloze"
    ):
        check_settings(EvalSettings(task="mmlu", data=DataSettings(prompt_style="boxed")))
    with pytest.raises(ConfigError, match=r"prompt style letters is not for task gsm8k; styles: r1_zero"):
        check_settings(EvalSettings(task="gsm8k", data=DataSettings(prompt_style="letters")))
    check_settings(EvalSettings(task="arc_easy", data=DataSettings(prompt_style="letters")))


def test_own_choices_need_a_file(settings: EvalSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no problems of its own.*--data\.source choices\.jsonl"):
        check_settings(EvalSettings(task="choices"))
    source = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "1 + 1 =", "answer": "2"}])
    wrong = settings.model_copy(update={"data": DataSettings(source=source)})
    with pytest.raises(DataError, match=r'prompts\.jsonl has no column "question"'):
        run_stage(tmp_path / "eval", wrong)

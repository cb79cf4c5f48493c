"""Categories and summaries by hand; the stage on a real model, resumed and seeded."""

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.data.sources import load_rows
from posttrain.errors import ConfigError, DataError, Stopped
from posttrain.evals import evaluate as evaluation
from posttrain.evals.evaluate import evaluate
from posttrain.evals.journal import Journal
from posttrain.evals.mathematics import grade_sample, summarise_grades
from posttrain.evals.samples import Category, Sample, metric, subset_lines, summarise
from posttrain.evals.scored import score_sample, summarise_scores
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.scoring import Scored
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import DataSettings, EngineSettings, EvalSettings, ModelSettings, SamplingSettings
from tests.conftest import call, write_rows

REAL_ROWS = Path(__file__).parents[2].parent / "shared" / "data"
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
    assert found["results"] == {  # of the means 1/2 and 0, and 1 and 0
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": pytest.approx(0.25),
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": pytest.approx(0.5),
        "pass@1,strict-match": 0.25,
        "pass@2,strict-match": 0.5,
    }
    assert found["mean_length"] == 6.0
    assert found["clipped_ratio"] == 0.25


def test_the_error_of_one_problem_is_not_known() -> None:
    found = metric("acc", [{"problem_id": "a", "sample": 0, "acc": 1.0}])
    assert found == {"acc,none": 1.0, "acc_stderr,none": None}


def test_rewards_are_results_by_their_names() -> None:
    scored = [Scored({"length": value, "other": None}, value) for value in (1.0, 3.0)]
    rows = [score_sample(prompt(str(i)), 0, completion("so"), part, "length").row() for i, part in enumerate(scored)]
    assert summarise_scores(rows)["results"] == {
        "length,none": 2.0, "length_stderr,none": pytest.approx(1.0), "other,none": None, "other_stderr,none": None,
        "reward,none": 2.0, "reward_stderr,none": pytest.approx(1.0),
    }  # fmt: skip


MATH_ROWS = {
    "math": [
        {"problem": f"{i}?", "level": level, "type": kind, "solution": "\\boxed{42}"}
        for i, (level, kind) in enumerate([("Level 5", "Geometry"), ("Level 1", "Algebra"), ("Level 5", "Algebra")])
    ],
    "math500": [
        {"problem": f"{i}?", "answer": "42", "level": level, "subject": subject, "unique_id": str(i)}
        for i, (level, subject) in enumerate([(5, "Geometry"), (1, "Algebra"), (5, "Algebra")])
    ],
    "gsm8k": [{"question": f"{i}?", "answer": "#### 42"} for i in range(3)],
}


def graded_rows(source: str, path: str | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Return the samples of a source's problems, of which those with an even place are answered rightly."""
    rows = load_rows(DataSettings(source=source, path=path, split="test", **settings), seed=0)
    prompts = [Prompt(row.id, (1,), "?", row.columns) for row in rows]
    texts = [f"</think> <answer>{row.columns['answer'] if i % 2 == 0 else 'no'}</answer>" for i, row in enumerate(rows)]
    return [sample.row() for sample in graded(prompts, [[completion(text)] for text in texts])]


@pytest.mark.parametrize("source", ["math", "math500"])
def test_math_is_told_by_level_and_subject(source: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "test.jsonl", MATH_ROWS[source])
    subsets = summarise(graded_rows(source, path))["subsets"]
    counts = {
        name: {value: (of["problems"], of["mean"]) for value, of in each.items()} for name, each in subsets.items()
    }
    assert counts == {
        "subject": {"Algebra": (2, 0.5), "Geometry": (1, 1.0)},
        "level": {"1": (1, 0.0), "5": (2, 1.0)},
    }
    lines = subset_lines(subsets)
    assert [line.split()[0] for line in lines] == ["subject", "Algebra", "Geometry", "level", "1", "5"]
    assert lines[1].split() == ["Algebra", "0.500", *lines[1].split()[2:5], "2"]


def test_gsm8k_has_no_subsets(tmp_path: Path) -> None:
    found = summarise(graded_rows("gsm8k", write_rows(tmp_path / "test.jsonl", MATH_ROWS["gsm8k"])))
    assert (found["subsets"], subset_lines(found["subsets"])) == ({}, [])


def test_levels_are_in_the_order_of_numbers() -> None:
    rows = [
        sample.row()
        for sample in graded([prompt(str(i), answer="42", level=i) for i in (10, 9, 1)], [[completion(RIGHT)]] * 3)
    ]
    assert list(summarise(rows)["subsets"]["level"]) == ["1", "9", "10"]


@pytest.mark.skipif(not REAL_ROWS.is_dir(), reason="the real rows are not beside the repository")
def test_real_rows_are_told_by_what_they_have() -> None:
    """The copy of MATH-500 has neither subject nor level."""
    math500 = summarise(graded_rows("math500", str(REAL_ROWS / "math500" / "test.jsonl")))
    assert (math500["problems"] + math500["ungradable_problems"], math500["subsets"]) == (500, {})
    gsm8k = summarise(graded_rows("gsm8k", str(REAL_ROWS / "gsm8k"), rows=50))
    assert (gsm8k["problems"], gsm8k["score"]["mean"], gsm8k["subsets"]) == (50, 0.5, {})


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
    monkeypatch.setattr(evaluation, "SAMPLES_PER_STEP", 4)
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
    monkeypatch.setattr(evaluation, "SAMPLES_PER_STEP", 4)
    with (
        stop_on_signals(),
        pytest.raises(Stopped, match="saved up to step 1"),
        StageRun.open(tmp_path / "eval", settings=settings, fingerprint="f", display=StopWhileGenerating()) as run,
    ):
        evaluate(settings, run)
    with open_run(tmp_path / "eval", settings) as run:
        assert run.checkpoint is not None
        assert run.checkpoint.step == 1


def test_a_stop_within_a_batch_keeps_every_completion_that_has_ended(
    settings: EvalSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tmp_path / "whole", settings) as run:
        evaluate(settings, run)
    few = settings.model_copy(update={"engine": EngineSettings(max_sequences=2)})
    keep, kept = Journal.__setitem__, []

    def stop_after_three(self: Journal, place: tuple[int, int], completion: Completion) -> None:
        keep(self, place, completion)
        kept.append(place)
        if len(kept) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Journal, "__setitem__", stop_after_three)
    with stop_on_signals(), pytest.raises(Stopped), open_run(tmp_path / "parts", few) as run:
        evaluate(few, run)
    assert 3 <= len(kept) < 10
    assert len((tmp_path / "parts" / "completions.jsonl").read_text().splitlines()) == len(kept)
    with open_run(tmp_path / "parts", few) as run:
        evaluate(few, run)
    assert sorted(kept) == [(problem, sample) for problem in range(5) for sample in range(2)]  # none was made twice
    assert not (tmp_path / "parts" / "completions.jsonl").exists()
    (parts, _), (whole, _) = artifact(tmp_path / "parts"), artifact(tmp_path / "whole")
    assert [row["completion"] for row in parts] == [row["completion"] for row in whole]


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


def test_examples_change_the_template_hash_and_not_the_problems(settings: EvalSettings, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}", "answer": str(i + 1)} for i in range(9)]
    source = write_rows(tmp_path / "own.jsonl", rows)
    found = {}
    for count, seed in ((0, 3), (1, 3), (2, 3), (2, 4)):
        data = DataSettings(source=source, held_out=0.5, split="test", num_fewshot=count)
        with open_run(tmp_path / f"{count}-{seed}", settings) as run:
            evaluate(settings.model_copy(update={"data": data, "seed": seed}), run)
        found[count, seed] = artifact(tmp_path / f"{count}-{seed}")
    assert len({summary["template_hash"] for _, summary in found.values()}) == 4
    assert len({summary["data_fingerprint"] for _, summary in found.values()}) == 1
    assert all(sample["prompt"].count("=") == 3 for sample in found[2, 3][0])


def test_the_command_line_prints_the_summary_as_json(
    settings: EvalSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "own.jsonl", [{"prompt": f"{i} =", "answer": "1", "level": i % 2} for i in range(4)])
    flags = ["--model.name_or_path", settings.model.name_or_path, "--data.source", source, "--runs-dir", str(tmp_path)]
    flags += ["--sampling.max_completion_length", "4", "--model.dtype", "float32", "--display", "plain", "--json"]
    assert call("eval", "--name", "e", *flags) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["directory"] == str(tmp_path / "e")
    assert printed["summary"]["results"]["exact_match,strict-match"] == printed["summary"]["score"]["mean"]
    assert set(printed["summary"]["subsets"]["level"]) == {"0", "1"}
    assert "level  score  95% interval    problems" in captured.err
    assert call("eval", "--name", "e", *flags) == 0  # finished: it is only shown
    assert json.loads(capsys.readouterr().out) == printed


def test_a_dry_run_shows_a_question_with_its_choices(
    settings: EvalSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_rows(tmp_path / "own.jsonl", [{"question": "Which?", "choices": ["x", "y"], "answer": "B"}])
    flags = ["--model.name_or_path", settings.model.name_or_path, "--task", "choices", "--data.source", source]
    assert call("eval", *flags, "--runs-dir", str(tmp_path), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "| B. y" in out
    assert "column continuations: (' A', ' B')" in out
    assert call("eval", "--task", "arc-easy", "--runs-dir", str(tmp_path), "--dry-run") == 2
    assert "Did you mean arc_easy?" in capsys.readouterr().err
    assert call("eval", *flags, "--num_samples", "4", "--runs-dir", str(tmp_path)) == 2
    assert "num_samples has no meaning for task choices" in capsys.readouterr().err

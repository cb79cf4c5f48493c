"""Tasks that rules, reward models and judges score: by hand, and as whole stages with a stop between batches."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError, Stopped
from posttrain.evals import evaluate as evaluation
from posttrain.evals.checks import check_settings
from posttrain.evals.evaluate import evaluate
from posttrain.evals.instructions import instruction_verdicts, summarise_instructions
from posttrain.evals.samples import Category
from posttrain.evals.scored import score_identity, score_sample, summarise_references
from posttrain.evals.tasks import find_task
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.scoring import Scored
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import (
    DataSettings,
    EvalSettings,
    JudgeOptions,
    ModelSettings,
    RewardOptions,
    SamplingSettings,
)
from tests.conftest import write_rows
from tests.rewards.conftest import ChatServer, said

NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def completion(text: str, stop: StopReason = StopReason.EOS) -> Completion:
    return Completion(ids=(5,), engine_logprobs=(-0.1,), stop_reason=stop, text=text)


@pytest.mark.parametrize(
    ("rule", "reward", "stop", "category", "score"),
    [
        (1.0, 7.0, StopReason.EOS, Category.CORRECT, 1.0),
        (1.0, None, StopReason.LENGTH, Category.CORRECT, 1.0),
        (0.0, 7.0, StopReason.EOS, Category.WRONG_ANSWER, 0.0),
        (0.0, 7.0, StopReason.LENGTH, Category.TRUNCATED, 0.0),
        (None, 7.0, StopReason.EOS, Category.COULD_NOT_GRADE, None),
    ],
)
def test_categories_of_a_rule(
    rule: float | None, reward: float | None, stop: StopReason, category: Category, score: float | None
) -> None:
    prompt = Prompt("a", (1,), "?", {})
    sample = score_sample(prompt, 0, completion("x", stop), Scored({"refuses": rule}, reward), "refuses")
    assert (sample.category, sample.score) == (category, score)


@pytest.mark.parametrize(
    ("reward", "stop", "category"),
    [
        (1.0, StopReason.EOS, Category.SCORED),
        (-2.5, StopReason.LENGTH, Category.TRUNCATED),
        (None, StopReason.EOS, Category.COULD_NOT_GRADE),
    ],
)
def test_categories_of_a_reward(reward: float | None, stop: StopReason, category: Category) -> None:
    sample = score_sample(Prompt("a", (1,), "?", {}), 0, completion("x", stop), Scored({"refuses": 1.0}, reward), None)
    assert (sample.category, sample.score) == (category, reward)


def test_instructions_are_summarised_by_hand() -> None:
    columns = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:exact_words"],
        "kwargs": [{}, {"num_words": 2}],
    }
    texts = {"a": "two words", "b": "two, words", "c": "Sure, gladly:\ntwo words"}
    rows = [
        {"problem_id": name, "sample": 0, **instruction_verdicts(columns, text)} for name, text in texts.items()
    ] + [{"problem_id": "d", "sample": 0, **instruction_verdicts({}, "no instructions")}]
    found = summarise_instructions(rows)
    results = found["results"]
    assert results["prompt_level_strict_acc,none"] == pytest.approx(1 / 3)
    assert results["prompt_level_loose_acc,none"] == pytest.approx(2 / 3)
    assert results["inst_level_strict_acc,none"] == pytest.approx(3 / 6)
    assert results["inst_level_loose_acc,none"] == pytest.approx(5 / 6)
    exact = found["instructions"]["subsets"]["instruction"]["length_constraints:exact_words"]
    assert (exact["problems"], exact["mean"], exact["loose"]) == (3, pytest.approx(2 / 3), 1.0)
    assert 0 < exact["low"] < exact["mean"] < exact["high"] < 1
    assert found["instructions"]["prompt_level_strict_acc"]["low"] > 0
    assert summarise_instructions(rows[-1:]) == {}


def test_a_kind_named_twice_in_a_row_counts_once() -> None:
    columns = {
        "instruction_id_list": ["keywords:frequency", "keywords:frequency"],
        "kwargs": [{"keyword": word, "frequency": 1, "relation": "at least"} for word in ("war", "peace")],
    }
    rows = [
        {"problem_id": name, "sample": 0, **instruction_verdicts(columns, text)}
        for name, text in {"a": "war", "b": "war and peace"}.items()
    ]
    found = summarise_instructions(rows)["instructions"]
    assert found["inst_level_strict_acc"] == 0.75
    kind = found["subsets"]["instruction"]["keywords:frequency"]
    assert (kind["problems"], kind["mean"]) == (2, 0.5)
    assert 0 < kind["low"] < kind["high"] < 1


def test_wins_against_references_by_hand() -> None:
    pairs = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (2.0, 1.0), (None, 1.0)]
    rows = [
        {"problem_id": str(place), "sample": 0, "reward": reward, "reference_reward": other}
        for place, (reward, other) in enumerate(pairs)
    ]
    found = summarise_references(rows)
    assert found["win_rate"]["mean"] == 2.5 / 4
    assert found["reference_reward"]["mean"] == 2.5 / 4
    assert summarise_references([{"problem_id": "a", "sample": 0, "reward": 1.0}]) == {}


# --- whole stages ----------------------------------------------------------------------------------------------


@pytest.fixture
def make_settings(save_model: Callable[..., str], nano_tokenizer: Any, tmp_path: Path) -> Callable[..., EvalSettings]:
    """Return a function that makes settings of an evaluation of a tiny random model on given rows."""
    model = ModelSettings(name_or_path=save_model("llama", nano_tokenizer), dtype="float32", device="cpu")

    def make(task: str, rows: list[dict[str, Any]], **settings: Any) -> EvalSettings:
        source = write_rows(tmp_path / "rows.jsonl", rows)
        return EvalSettings(
            model=model,
            task=task,
            data=DataSettings(source=source, split="test"),
            sampling=SamplingSettings(temperature=0.0, max_completion_length=8),
            **settings,
        )

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., ChatServer]]:
    servers: list[ChatServer] = []

    def start(answer: Any) -> ChatServer:
        servers.append(ChatServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def judged(server: ChatServer, **options: Any) -> dict[str, Any]:
    judge = JudgeOptions(base_url=server.url, model="m", **options)
    return {"rewards": {"judge": 1.0}, "reward_options": RewardOptions(judge=judge)}


def run_evaluation(path: Path, settings: EvalSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with StageRun.open(path, settings=settings, fingerprint="f", display=NoDisplay()) as run:
        evaluate(settings, run)
    return read_rollouts(path / "artifact" / "samples.parquet"), json.loads(
        (path / "artifact" / "summary.json").read_bytes()
    )


def test_a_rule_scores_and_every_instruction_is_kept(make_settings: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a river.", **NO_COMMA},
        {"prompt": "Write at length.", "instruction_id_list": ["length_constraints:exact_words"],
         "kwargs": [{"num_words": 500}]},
    ]  # fmt: skip
    samples, summary = run_evaluation(tmp_path / "eval", make_settings("ifeval", rows))
    by_prompt = {sample["prompt"]: sample for sample in samples}
    short = by_prompt["Write at length."]
    assert short["instructions"] == ["length_constraints:exact_words"]
    assert (short["followed"], short["followed_loosely"], short["score"]) == ([False], [False], 0.0)
    assert by_prompt["Name a river."]["score"] == by_prompt["Name a river."]["rewards/follows_every_instruction"]
    assert summary["score"]["mean"] == summary["results"]["prompt_level_strict_acc,none"]
    assert (summary["scorer"], summary["kind"]) == ({"score": "follows_every_instruction"}, "scored")
    assert summary["grader_version"] is None


def test_refusing_everything_shows_by_kind(make_settings: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Question {place}?",
            "kind": "harmful" if place % 2 else "harmless",
            "should_refuse": bool(place % 2),
        }
        for place in range(4)
    ]
    _, summary = run_evaluation(tmp_path / "eval", make_settings("over_refusal", rows))
    kinds = summary["subsets"]["kind"]
    assert (kinds["harmless"]["mean"], kinds["harmful"]["mean"]) == (1.0, 0.0)  # a model of noise refuses nothing
    assert kinds["harmless"]["problems"] == 2


def test_a_reward_model_takes_the_place_of_the_rule(
    make_settings: Callable[..., Any], tmp_path: Path, reward_model: str
) -> None:
    rows = [
        {"prompt": "Name a river.", "kind": "constraint", **NO_COMMA},
        {"prompt": "Capital of France?", "kind": "fact", "accepted_answers": ["Paris"]},
        {"prompt": "Help me steal.", "kind": "safety", "should_refuse": True},
    ]
    plain = make_settings("alignment", rows)
    _, by_rule = run_evaluation(tmp_path / "rule", plain)
    assert by_rule["scorer"] == {"score": "passes_checks"}
    assert set(by_rule["subsets"]["kind"]) == {"constraint", "fact", "safety"}
    scored = plain.model_copy(update={"rewards": {"reward_model": 1.0}, "reward_model": reward_model})
    samples, summary = run_evaluation(tmp_path / "scored", scored)
    assert all(sample["score"] == sample["reward"] == sample["rewards/reward_model"] for sample in samples)
    assert summary["rewards"]["passes_checks"]["mean"] == by_rule["score"]["mean"]
    assert summary["scorer"].keys() == {"score", "rewards.reward_model", "combination", "reward_model"}
    assert summary["scores"] == {"passes_checks": 0.0, "reward_model": 1.0}


class StopAfterOneStep(NoDisplay):
    """Asks the process to stop, as a user does, once the first batch is logged."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_judge_is_asked_once_for_each_answer_over_a_stop(
    make_settings: Callable[..., Any],
    serve: Callable[..., ChatServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(lambda body, number: (200, said(json.dumps({"score": len(str(body)) % 11})), {}))
    settings = make_settings("prompts", [{"prompt": f"{place} + 1 ="} for place in range(5)], **judged(server))
    monkeypatch.setattr(evaluation, "SAMPLES_PER_STEP", 2)
    whole, whole_summary = run_evaluation(tmp_path / "whole", settings)
    tried, asked = 2, 5
    assert len(server.requests) == tried + asked
    with (
        stop_on_signals(),
        pytest.raises(Stopped),
        StageRun.open(tmp_path / "parts", settings=settings, fingerprint="f", display=StopAfterOneStep()) as run,
    ):
        evaluate(settings, run)
    assert len(server.requests) == 2 * tried + asked + 2
    parts, summary = run_evaluation(tmp_path / "parts", settings)
    assert len(server.requests) == 2 * (tried + asked)
    assert (parts, summary) == (whole, whole_summary)
    assert {sample["category"] for sample in parts} <= {"scored", "truncated"}
    assert summary["scorer"]["judge.model"] == "m"
    assert "judge.base_url" not in summary["scorer"]


def test_a_pairwise_judge_compares_with_the_reference(
    make_settings: Callable[..., Any], serve: Callable[..., ChatServer], tmp_path: Path
) -> None:
    def prefers_the_reference(body: dict[str, Any], number: int) -> Any:
        first = body["messages"][1]["content"].split("[answer B")[0]
        return 200, said(json.dumps({"better": "A" if "The Nile, of course." in first else "B"})), {}

    server = serve(prefers_the_reference)
    rows = [
        {"instruction": f"Name river {place}.", "output": "The Nile, of course.", "generator": "g", "dataset": "koala"}
        for place in range(3)
    ]
    settings = make_settings("prompts", rows, score_reference=True, **judged(server, mode="pairwise"))
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"prompt_style": None})})
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    model = settings.model.model_copy(update={"chat_template": str(template)})
    samples, summary = run_evaluation(tmp_path / "eval", settings.model_copy(update={"model": model}))
    assert [sample["reference"] for sample in samples] == ["The Nile, of course."] * 3
    assert all((sample["score"], sample["reference_reward"]) == (0.0, 1.0) for sample in samples)
    assert [(sample["judge_shown_first"], sample["judge_shown_second"]) for sample in samples] == [(0.0, 0.0)] * 3
    assert summary["win_rate"]["mean"] == 0.0
    assert summary["first_shown_rate"]["mean"] == 0.5
    assert summary["subsets"]["dataset"]["koala"]["problems"] == 3
    assert len(server.requests) == 2 + 2 * 3


def nowhere(settings: EvalSettings) -> EvalSettings:
    """Return settings with a model that is not there: what is wrong besides must be said before it is loaded."""
    return settings.model_copy(update={"model": ModelSettings(name_or_path="/no/such/model")})


def test_faults_of_rows_are_told_before_the_model_loads(make_settings: Callable[..., Any], tmp_path: Path) -> None:
    bad = {"prompt": "Go.", "instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}
    settings = nowhere(make_settings("ifeval", [{"prompt": "Stay.", **NO_COMMA}, bad]))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no instruction 'punctuation:no_coma' is known, the nearest"):
        run_evaluation(tmp_path / "eval", settings)
    settings = nowhere(make_settings("prompts", [{"prompt": "Go."}], rewards={"refuses": 1.0}, score_reference=True))
    with pytest.raises(DataError, match="expected a column completion, or instruction and output"):
        run_evaluation(tmp_path / "reference", settings)


def test_a_judges_budget_is_checked_before_the_model_loads(
    make_settings: Callable[..., Any], serve: Callable[..., ChatServer], tmp_path: Path
) -> None:
    server = serve(lambda body, number: (200, said('{"score": 1}'), {}))
    rows = [{"prompt": f"{place} + 1 ="} for place in range(5)]
    settings = nowhere(make_settings("prompts", rows, **judged(server, max_calls=6)))
    with pytest.raises(ConfigError, match="called up to 7 times, and max_calls = 6") as caught:
        run_evaluation(tmp_path / "eval", settings)
    assert caught.value.fix == "--reward_options.judge.max_calls 7"
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"task": "prompts"}, "task prompts has no problems of its own"),
        ({"task": "prompts", "data": {"source": "x.jsonl"}}, "is scored by rewards, and none has a weight"),
        ({"task": "nano", "score_reference": True}, "score_reference is for tasks that rewards score"),
        ({"task": "alignment", "score_reference": True}, "score_reference compares rewards, and none has a weight"),
        (
            {"task": "alignment", "rewards": {"judge": 1.0}, "num_samples": 2, "sampling": {"temperature": 1.0},
             "reward_options": {"judge": {"model": "m", "mode": "pairwise"}}},
            "their mean is a half for any model",
        ),
        (
            {"task": "alignment", "rewards": {"judge": 1.0},
             "reward_options": {"judge": {"model": "m", "mode": "pairwise"}}},
            "compares the completions of a prompt, and num_samples = 1",
        ),
        (
            {"task": "alignment", "rewards": {"judge": 1.0}, "num_samples": 2, "score_reference": True,
             "sampling": {"temperature": 1.0}, "reward_options": {"judge": {"model": "m", "mode": "pairwise"}}},
            "compares one sample of each prompt with its reference",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_settings(EvalSettings.model_validate(settings))


def identity(**settings: Any) -> dict[str, Any]:
    return score_identity(find_task("alignment"), EvalSettings.model_validate(settings))


def test_what_decides_a_score_is_what_counts(tmp_path: Path) -> None:
    assert identity() == identity(rewards={"refuses": 0.0}) == {"score": "passes_checks"}
    assert identity(rewards={"refuses": 1.0}) == {"score": "reward", "rewards.refuses": 1.0, "combination": "sum"}
    gated = identity(rewards={"answers": 1.0, "refuses": 0.0}, reward_combination="gated", reward_gate="refuses")
    assert gated["combination"] == "gated by refuses"
    assert gated["rewards.refuses"] == 0.0
    graded = identity(rewards={"numeric_match": 1.0}, reward_options={"numeric_match": {"tolerance": 0.1}})
    assert graded["numeric_match.tolerance"] == 0.1
    assert "grader_version" in graded
    asked = {"model": "m", "max_calls": 7, "rubric": "Is it kind?"}
    judge = identity(rewards={"judge": 1.0}, reward_options={"judge": asked})
    assert judge["judge.rubric"] == "Is it kind?"
    assert judge == identity(rewards={"judge": 1.0}, reward_options={"judge": asked | {"max_calls": 8}})
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions): ...\n")
    first = identity(rewards={"mine": 1.0}, reward_file=str(file))
    file.write_text("def mine(completions): ... # changed\n")
    assert first["reward_file"] != identity(rewards={"mine": 1.0}, reward_file=str(file))["reward_file"]


def test_a_reward_model_is_known_by_its_content(tmp_path: Path) -> None:
    directory = tmp_path / "rm"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    settings = {"rewards": {"reward_model": 1.0}, "reward_model": str(directory)}
    plain = identity(**settings)["reward_model"]
    (directory / "config.json").write_text('{"a": 1}')
    assert identity(**settings)["reward_model"] != plain
    (directory / "posttrain.json").write_text(json.dumps({"sha256": "5ea1" * 16}))
    assert identity(**settings)["reward_model"] == "5ea1" * 4
    assert identity(**settings | {"reward_model": "hub/name"})["reward_model"] == "hub/name"

"""Functions written for other trainers are called as they expect, and what is nobody's form is refused."""

import asyncio
from types import MappingProxyType

import pytest

from posttrain.errors import RewardError
from posttrain.rewards.failures import Failed
from posttrain.rewards.signatures import FORMS, adapt, recognise
from tests.rewards.conftest import arguments

TEXTS = ["42", "41"]


def call(function, **columns):
    adapted = adapt("mine", function, lambda error: f"raised {error!r}")
    return adapted.form, adapted.call(arguments(TEXTS, **columns))


def test_trl() -> None:
    def mine(prompts, completions, level, **kwargs):
        assert kwargs["truncated"] == [False, False]
        return [float(len(c) + n) for c, n in zip(completions, level, strict=True)]

    assert call(mine, level=[1, 2]) == ("TRL", [3.0, 4.0])


def test_trl_asynchronous_with_what_only_a_trainer_has() -> None:
    async def mine(completions, log_metric, trainer_state=None, **kwargs):
        await asyncio.sleep(0)
        log_metric("x", 1.0)
        return [1.0 if trainer_state is None else 0.0] * len(completions)

    assert call(mine) == ("TRL", [1.0, 1.0])


@pytest.mark.parametrize(
    "columns",
    [
        {"answer": ["42", "42"]},
        {"ground_truth": ["42", "42"]},
        {"reward_model": [{"style": "rule", "ground_truth": "42"}] * 2},
    ],
)
def test_verl(columns) -> None:
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        assert data_source == "gsm8k"
        assert extra_info == {"index": 3}
        return {"score": float(solution_str == ground_truth), "acc": 1.0}

    found = call(compute_score, data_source=["gsm8k"] * 2, extra_info=[{"index": 3}] * 2, **columns)
    assert found == ("verl", [1.0, 0.0])


def test_verl_without_extra_info_is_given_the_row() -> None:
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        assert data_source == ""
        return float(extra_info["level"])

    assert call(compute_score, answer=["42"] * 2, level=[1, 2]) == ("verl", [1.0, 2.0])


def test_openrlhf() -> None:
    def reward_func(queries, prompts, labels, **kwargs):
        assert queries == ["6 * 7?42", "6 * 7?41"]
        assert prompts == ["6 * 7?"] * 2
        rewards = [float(q.endswith(label)) for q, label in zip(queries, labels, strict=True)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    assert call(reward_func, label=["42", "42"]) == ("OpenRLHF", [1.0, 0.0])


def test_verifiers_by_name_and_asynchronous() -> None:
    async def mine(answer, completion, info, task, state):
        assert info == {}
        assert task == "default"
        assert state["prompt"] == "6 * 7?"
        await asyncio.sleep(0)
        return float(completion == answer)

    assert call(mine, answer=["42", "42"]) == ("verifiers", [1.0, 0.0])


def test_one_sample_fails_alone() -> None:
    def mine(completion):
        return 1.0 if completion == "42" else 1 / 0

    form, (first, second) = call(mine)
    assert (form, first) == ("verifiers", 1.0)
    assert isinstance(second, Failed)
    assert second.reason.startswith("raised ZeroDivisionError")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: 1.0, "it is none of the forms"),
        (lambda **kwargs: 1.0, "it is none of the forms"),
        (lambda completions, queries: [1.0], "it could be any of TRL, OpenRLHF"),
        (lambda completion, other: 1.0, "it is none of the forms"),
        (lambda completions, /: 1.0, "completions cannot be given by name"),
        (lambda *args, completions=(): 1.0, r"\*args cannot be given by name"),
    ],
)
def test_what_is_not_understood_lists_what_is(function, why: str) -> None:
    with pytest.raises(RewardError, match=f"reward mine.* is not understood: {why}") as caught:
        recognise("mine", function)
    assert all(form in str(caught.value) for form in FORMS)


def test_a_gold_that_the_rows_lack_is_named() -> None:
    def compute_score(solution_str, ground_truth):
        return 1.0

    with pytest.raises(RewardError, match=r"asks for a gold answer.*; the rows have: level"):
        call(compute_score, level=[1, 1])


def test_a_dict_without_its_score_is_named() -> None:
    def compute_score(solution_str, ground_truth):
        return {"acc": 1.0}

    with pytest.raises(RewardError, match=r"expected a key score .* found acc"):
        call(compute_score, answer=["42"] * 2)


def test_prompts_of_messages_are_one_text_where_a_text_is_expected() -> None:
    def reward_func(queries, prompts, labels):
        assert queries == ["user: 6 * 7?42"]
        return [1.0]

    adapted = adapt("mine", reward_func, repr)
    prompts = [[MappingProxyType({"role": "user", "content": "6 * 7?"})]]
    completions = [[{"role": "assistant", "content": "42"}]]
    assert adapted.call({"prompts": prompts, "completions": completions, "answer": ["42"]}) == [1.0]

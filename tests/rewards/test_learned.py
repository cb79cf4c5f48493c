"""A reward model as a reward function: its scores are transformers' own, whatever stands beside them."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.errors import ConfigError
from posttrain.models.lm import LoadedModel, load_reward_model
from posttrain.records import Branch, Completion, Prompt, StopReason, TokenTree
from posttrain.rewards import REWARD_MODEL
from posttrain.rewards.learned import LearnedReward, learned_reward, score_trees, trust
from posttrain.rewards.scoring import score
from posttrain.settings import ModelSettings

PROMPTS = ["User: 2+2?\nAssistant:", "User: 3+4?\nAssistant:", "User: 2+2?\nAssistant:"]
COMPLETIONS = [" It is 4.", " 7", " 5 it is, I think."]


@pytest.fixture
def loaded(reward_model: str) -> LoadedModel:
    return load_reward_model(ModelSettings(name_or_path=reward_model, dtype="float32", device="cpu"))


def own_score(directory: str, ids: list[int]) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def test_scores_are_those_of_each_text_by_itself(reward_model: str, loaded: LoadedModel) -> None:
    found = LearnedReward(loaded, max_tokens=60)(PROMPTS, COMPLETIONS)
    end = loaded.tokenizer.eos_token_id
    for prompt, completion, value in zip(PROMPTS, COMPLETIONS, found, strict=True):
        ids = loaded.tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
        assert value == pytest.approx(own_score(reward_model, [*ids, end]), abs=1e-5)
    assert len(set(found)) == 3


def test_a_completion_that_was_cut_off_has_no_end(reward_model: str, loaded: LoadedModel) -> None:
    found = LearnedReward(loaded, max_tokens=4096)(PROMPTS[:2], COMPLETIONS[:2], truncated=[True, False])
    ids = [loaded.tokenizer(p + c, add_special_tokens=False)["input_ids"] for p, c in zip(PROMPTS, COMPLETIONS)]  # noqa: B905
    assert found[0] == pytest.approx(own_score(reward_model, ids[0]), abs=1e-5)
    assert found[1] == pytest.approx(own_score(reward_model, [*ids[1], loaded.tokenizer.eos_token_id]), abs=1e-5)


def test_messages_go_through_the_reward_models_own_template(reward_model: str, loaded: LoadedModel) -> None:
    prompt = [{"role": "user", "content": "2+2?"}]
    reply = [{"role": "assistant", "content": "4"}]
    (found,) = LearnedReward(loaded, max_tokens=4096)([prompt], [reply])
    text = loaded.tokenizer.apply_chat_template([*prompt, *reply], tokenize=False).rstrip()
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = ids if ids[-1] in loaded.tokenizer.added_tokens_decoder else [*ids, loaded.tokenizer.eos_token_id]
    assert found == pytest.approx(own_score(reward_model, ids), abs=1e-5)
    (cut,) = LearnedReward(loaded, max_tokens=4096)([prompt], [reply], truncated=[True])
    assert cut == pytest.approx(own_score(reward_model, ids[:-1]), abs=1e-5)


def test_what_is_too_long_or_empty_has_no_score_and_is_told_once(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.model.config.max_position_embeddings = 30
    reward = LearnedReward(loaded, max_tokens=4096)
    with caplog.at_level(logging.WARNING, "posttrain"):
        for _ in range(2):
            found = reward(PROMPTS, [" 4", " 4" * 40, ""], truncated=[False, False, True])
            assert [value is None for value in found] == [False, True, True]
    assert [record.message for record in caplog.records] == [
        "completions over the reward model's context of 30 tokens, with their prompts, have no score"
    ]


def test_it_is_called_as_every_reward(reward_model: str) -> None:
    reward = learned_reward(reward_model, ModelSettings(dtype="float32", device="cpu"), max_tokens=4096)
    prompt = Prompt("a", (1,), PROMPTS[0], {"answer": "4"})
    cut, whole = (Completion((5,), (0.0,), reason, COMPLETIONS[0]) for reason in (StopReason.LENGTH, StopReason.EOS))
    scored = score([prompt], [[cut, whole]], {REWARD_MODEL: 2.0}, {REWARD_MODEL: reward})
    expected = reward([PROMPTS[0]] * 2, [COMPLETIONS[0]] * 2, truncated=[True, False])
    assert [part.scores[REWARD_MODEL] for part in scored] == pytest.approx(expected)
    assert scored[0].reward == pytest.approx(2 * expected[0])  # type: ignore[operator]


def test_scores_keep_the_order_of_the_branches_and_are_counted(loaded: LoadedModel) -> None:
    trees = [
        TokenTree((5, 6), (Branch((7, 8), (1, 1)), Branch((9,), (1,)))),
        TokenTree((5,), (Branch((7,), (1,)),)),
        TokenTree((5, 6), (Branch((10, 11, 12), (1, 1, 1)),)),
    ]
    progress: list[tuple[int, int]] = []
    found = score_trees(loaded, trees, 6, on_progress=lambda done, total: progress.append((done, total)))
    alone = [score_trees(loaded, [TokenTree(t.prompt_ids, (b,))], 99)[0] for t in trees for b in t.branches]
    assert found == pytest.approx(alone, abs=1e-5)
    assert len(progress) > 1
    assert progress[-1] == (4, 4)
    assert score_trees(loaded, [], 6) == []


def test_trust_is_the_reward_models_own_report(reward_model: str, tmp_path: Path) -> None:
    directory = str(shutil.copytree(reward_model, tmp_path / "rm"))
    assert "whether it beats chance is not known" in trust(directory, allow_weak=False)
    path = tmp_path / "rm" / "reward_model.json"
    report = {"beats_chance": True, "verdict": "better than chance", "bias": {"findings": ["prefers longer answers"]}}
    path.write_text(json.dumps(report))
    assert trust(directory, allow_weak=False).endswith("rm: better than chance\n  prefers longer answers")
    path.write_text(json.dumps({**report, "beats_chance": False, "verdict": "no better than chance"}))
    with pytest.raises(ConfigError, match="rm is no better than chance") as caught:
        trust(directory, allow_weak=False)
    assert caught.value.fix == "--allow_weak_reward_model true"
    assert "no better than chance" in trust(directory, allow_weak=True)

"""The corpus: every part, weights, noise, and no arithmetic from another split."""

import re
from itertools import islice

import pytest

from posttrain.nano.corpus import BLEND, MID_TRAINING_BLEND, PARTS, documents
from posttrain.nano.problems import Operation, apply, split_of
from posttrain.nano.tokenizer import train_tokenizer

WELL_FORMED = re.compile(r"<think> .* </think> <answer>\d+</answer>$", re.DOTALL)


def sample(part: str, count: int = 300) -> list[str]:
    return list(islice(documents({part: 1.0}, seed=3), count))


@pytest.mark.parametrize("part", PARTS)
def test_each_part_yields_varied_documents(part: str) -> None:
    found = sample(part)
    assert len(set(found)) == len(found)
    assert all(text.strip() == text for text in found)


def test_blends_name_existing_parts_and_sum_to_one() -> None:
    for blend in (BLEND, MID_TRAINING_BLEND):
        assert set(blend) <= set(PARTS)
        assert sum(blend.values()) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="unknown corpus part 'poems'"):
        next(documents({"poems": 1.0}, seed=0))


def test_weights_decide_the_shares() -> None:
    found = list(islice(documents({"thinking": 1.0, "stories": 3.0}, seed=1), 1000))
    assert 0.2 < sum("<think>" in text for text in found) / len(found) < 0.3


def test_plain_sums_are_right_and_of_the_train_split() -> None:
    for text in sample("arithmetic", 50):
        for left, operator, right, result in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text):
            operation = Operation(int(left), operator, int(right), int(result))
            assert operation.result == apply(operator, operation.left, operation.right)
            assert split_of((operation,)) == "train"


def test_some_solutions_are_wrong_and_most_are_right() -> None:
    sums = [m for text in sample("worked") for m in re.findall(r"(?<![-+*/\d])(\d+)([-+*/])(\d+)=(\d+)", text)]
    wrong = sum(int(result) != apply(op, int(left), int(right)) for left, op, right, result in sums)
    assert 0.01 < wrong / len(sums) < 0.2


def test_most_thinking_text_is_badly_formed_but_some_is_not() -> None:
    found = sample("thinking")
    assert all("<think>" in text for text in found)
    assert 0.2 < sum(bool(WELL_FORMED.search(text)) for text in found) / len(found) < 0.5


def test_same_seed_same_corpus() -> None:
    assert list(islice(documents(BLEND, seed=4), 50)) == list(islice(documents(BLEND, seed=4), 50))
    assert list(islice(documents(BLEND, seed=4), 50)) != list(islice(documents(BLEND, seed=5), 50))


def test_tokenizer_round_trips_any_text_and_keeps_digits_apart() -> None:
    tokenizer = train_tokenizer(islice(documents(MID_TRAINING_BLEND, seed=0), 500), 512, 1024)
    for text in (*islice(documents(BLEND, seed=9), 20), "naïve 日本 \U0001f600\n\ttab", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.decode([token]) for token in tokenizer.encode("1999")] == ["1", "9", "9", "9"]
    assert len(tokenizer) == 512


def test_chat_template_prompt_is_a_prefix_and_the_end_token_is_marked() -> None:
    tokenizer = train_tokenizer(islice(documents(MID_TRAINING_BLEND, seed=0), 500), 512, 1024)
    messages = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "2+3=5."}]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == "User: 2+3?\nAssistant: 2+3=5.<|endoftext|>\n"
    assert whole.startswith(prompt)

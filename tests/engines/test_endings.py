"""Endings token by token: stop strings inside and across tokens and characters, and their order of precedence."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from posttrain.engines.endings import Endings
from posttrain.records import Completion, StopReason
from posttrain.settings import SamplingSettings

EOS, ODD = 1, 3  # <eos>, and a special token that does not end anything


def complete(tokenizer: PreTrainedTokenizerFast, ids: list[int], sampling: SamplingSettings) -> Completion | None:
    """Feed ids one at a time, as an engine does, until the completion ends."""
    endings = Endings(tokenizer, [EOS], sampling, torch.device("cpu"))
    for length in range(1, len(ids) + 1):
        sampled = ids[:length]
        tail = ([-1] * endings.tail_width + sampled)[-endings.tail_width :] if endings.tail_width else []
        lengths, candidates = endings.candidates(
            torch.tensor(sampled[-1:]), torch.tensor([length]), torch.tensor([tail], dtype=torch.long)
        )
        assert lengths.tolist() == [length]
        completion = endings.completion(sampled, [0.0] * length) if candidates else None
        if completion is not None:
            return completion
    return None


@pytest.mark.parametrize(
    ("text", "stops", "kept", "cut"),
    [
        ("xabcdy", ["bc"], "xabcd", "xa"),  # tokens x ab cd y: the stop begins and ends inside tokens
        ("hello wor", ["lo w"], "hello w", "hel"),
        ("quizébe", ["é"], "quizé", "quiz"),  # two tokens, one byte each
        ("azbycx", ["cx", "by"], "azby", "az"),
        ("abab", ["ba", "ab"], "ab", ""),  # the earliest of those that one token completes
    ],
)
def test_stop_strings(tokenizer: PreTrainedTokenizerFast, text: str, stops: list[str], kept: str, cut: str) -> None:
    ids = tokenizer(text).input_ids
    completion = complete(tokenizer, ids, SamplingSettings(max_completion_length=50, stop=stops))
    assert completion is not None
    assert completion.stop_reason == StopReason.STOP_STRING
    assert list(completion.ids) == tokenizer(kept).input_ids
    assert completion.text == cut


def test_a_stop_string_far_from_the_start_and_across_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer("qwerty" * 40).input_ids, *tokenizer("he").input_ids, ODD, *tokenizer("y z").input_ids]
    completion = complete(tokenizer, ids, SamplingSettings(max_completion_length=500, stop=["hey"]))
    assert completion is not None
    assert completion.text == "qwerty" * 40
    assert completion.ids[-2] == ODD


def test_no_stop_string_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("hello world").input_ids
    assert complete(tokenizer, ids, SamplingSettings(max_completion_length=50, stop=["wold", "dx"])) is None
    assert complete(tokenizer, ids, SamplingSettings(max_completion_length=50)) is None


def test_eos_and_stop_string_come_before_the_token_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [*tokenizer("qx").input_ids, EOS]
    ended = complete(tokenizer, ids, SamplingSettings(max_completion_length=3))
    stopped = complete(tokenizer, ids, SamplingSettings(max_completion_length=2, stop=["x"]))
    cut = complete(tokenizer, ids, SamplingSettings(max_completion_length=2))
    assert ended == Completion(tuple(ids), (0.0,) * 3, StopReason.EOS, "qx")
    assert stopped == Completion(tuple(ids[:2]), (0.0,) * 2, StopReason.STOP_STRING, "q")
    assert cut == Completion(tuple(ids[:2]), (0.0,) * 2, StopReason.LENGTH, "qx")

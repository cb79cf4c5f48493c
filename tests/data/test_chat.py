"""The renderer, with real tokenizers and templates: ids, masks and what is refused."""

import logging
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from posttrain.data.chat import (
    describe,
    drop_overlong,
    encode_pieces,
    render_prompt,
    render_training_tree,
    token_length,
)
from posttrain.data.rows import Row, build_row, freeze
from posttrain.errors import DataError
from posttrain.records import TokenTree

from .conftest import CHATML, DATED, QWEN3, QWEN3_MARKED, UNMARKED_TURNS

Tokenizer = PreTrainedTokenizerFast
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ASK = {"role": "user", "content": "How many eggs are left?"}
REPLY = {"role": "assistant", "content": "<think>16 - 9</think> 7 eggs."}
ASK_AGAIN = {"role": "user", "content": "Are you fine?"}
REPLY_AGAIN = {"role": "assistant", "content": "<think>feel</think> I am fine."}


def row(kind: Any, **record: Any) -> Row:
    return build_row(record, id="0" * 16, kind=kind, origin="chat.jsonl:3")


def trained_text(tree: TokenTree, tokenizer: Tokenizer) -> list[str]:
    """The runs of trained tokens, decoded with their special tokens."""
    (branch,) = tree.branches
    runs: list[list[int]] = [[]]
    for token, mark in zip(branch.ids, branch.mask, strict=True):
        if mark:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def whole_text(tree: TokenTree, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([*tree.prompt_ids, *tree.branches[0].ids], skip_special_tokens=False)


# --- prompts ---------------------------------------------------------------------------------------------------


def test_string_prompt_has_the_bos_the_tokenizer_adds_exactly_once(llama3: Tokenizer, chatml: Tokenizer) -> None:
    plain = render_prompt(row("prompt", prompt="Hello!"), llama3)
    already = render_prompt(row("prompt", prompt="<|begin_of_text|>Hello!"), llama3)
    assert plain.ids == already.ids
    assert plain.ids.count(llama3.bos_token_id) == 1
    assert plain.ids[0] == llama3.bos_token_id
    assert chatml.decode(render_prompt(row("prompt", prompt="Hello!"), chatml).ids) == "Hello!"


def test_message_prompt_is_the_template_with_generation_prompt_and_one_bos(llama3: Tokenizer) -> None:
    prompt = render_prompt(row("prompt", prompt=[SYSTEM, ASK]), llama3)
    assert prompt.ids == tuple(
        llama3.apply_chat_template([SYSTEM, ASK], add_generation_prompt=True, return_dict=False, tokenize=True)
    )
    assert prompt.ids.count(llama3.bos_token_id) == 1
    assert prompt.content == (SYSTEM, ASK)


def test_template_settings_come_from_the_row(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(QWEN3)
    asked = render_prompt(row("prompt", prompt=[ASK], chat_template_kwargs={"enable_thinking": False}), tokenizer)
    assert tokenizer.decode(asked.ids).endswith("<think></think>")
    assert asked.ids != render_prompt(row("prompt", prompt=[ASK]), tokenizer).ids


# --- dates -----------------------------------------------------------------------------------------------------


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "today's date" in record.message]


def test_a_template_that_writes_todays_date_gets_a_fixed_one(
    with_template: Callable[..., Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = with_template(DATED)
    assert "Today Date: 26 Jul 2024" not in tokenizer.apply_chat_template([ASK], tokenize=False)  # what is mended
    with caplog.at_level(logging.WARNING):
        prompt = render_prompt(row("prompt", prompt=[ASK]), tokenizer)
        tree = render_training_tree(row("messages", messages=[ASK, REPLY]), tokenizer)
    assert "Today Date: 26 Jul 2024\n\n<|im_end|>" in tokenizer.decode(prompt.ids)
    assert tree.prompt_ids == prompt.ids
    assert len(notices(caplog)) == 1
    assert tokenizer.chat_template == DATED


def test_a_row_may_still_set_its_own_date(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(DATED)
    dated = row("prompt", prompt=[ASK], chat_template_kwargs={"date_string": "1 May 2030"})
    assert "Today Date: 1 May 2030" in tokenizer.decode(render_prompt(dated, tokenizer).ids)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("strftime_now('%Y-%m-%d')", "2024-07-26"),
        ('strftime_now( format = "%d %B %Y" )', "26 July 2024"),
        ("strftime_now('%d') + '/' + strftime_now('%m')", "26/07"),
        ("""strftime_now("it's %Y")""", "it's 2024"),
    ],
)
def test_every_way_to_ask_for_the_date_is_found(
    with_template: Callable[..., Tokenizer], call: str, expected: str
) -> None:
    tokenizer = with_template("{{ " + call + " }}|" + CHATML)
    assert tokenizer.decode(render_prompt(row("prompt", prompt=[ASK]), tokenizer).ids).startswith(expected + "|")


def test_a_template_with_a_date_of_its_own_is_left_alone(
    with_template: Callable[..., Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    own = (
        "{% if not date_string is defined %}{% set date_string = '30 Sep 2024' %}{% endif %}{{ date_string }}|" + CHATML
    )
    tokenizer = with_template(own)
    with caplog.at_level(logging.WARNING):
        ids = render_prompt(row("prompt", prompt=[ASK]), tokenizer).ids
    assert list(ids) == tokenizer.apply_chat_template([ASK], add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids).startswith("30 Sep 2024|")
    assert not notices(caplog)


def test_prompt_columns_cannot_be_changed(chatml: Tokenizer) -> None:
    prompt = render_prompt(row("prompt", prompt="Hello!", answer="7", tests=[{"input": [1]}]), chatml)
    assert prompt.columns["answer"] == "7"
    with pytest.raises(TypeError):
        prompt.columns["answer"] = "8"
    with pytest.raises(TypeError):
        prompt.columns["tests"][0]["input"] = (2,)
    assert freeze([1, {"a": [2]}])[1]["a"] == (2,)


# --- string completions ----------------------------------------------------------------------------------------


def test_every_completion_token_and_the_end_are_trained(chatml: Tokenizer) -> None:
    tree = render_training_tree(row("prompt_completion", prompt="16 - 9 =", completion=" 7 eggs"), chatml)
    assert trained_text(tree, chatml) == [" 7 eggs<|im_end|>"]
    assert set(tree.branches[0].mask) == {1}
    # pad is the end token here, as in many models: the mask must not come from its id
    assert chatml.pad_token_id == chatml.eos_token_id == tree.branches[0].ids[-1]


def test_end_is_not_doubled(chatml: Tokenizer) -> None:
    tree = render_training_tree(row("prompt_completion", prompt="Hello", completion="fine<|im_end|>"), chatml)
    assert tree.branches[0].ids.count(chatml.eos_token_id) == 1


def test_prompt_ids_are_those_of_the_prompt_where_bpe_merges_across_the_boundary(chatml: Tokenizer) -> None:
    merging = row("prompt_completion", prompt="The answer is ", completion="7.")
    joint = chatml("The answer is 7.", add_special_tokens=False).input_ids
    alone = chatml("The answer is ", add_special_tokens=False).input_ids
    assert joint[: len(alone)] != alone  # the planted trap: " 7" is one token
    tree = render_training_tree(merging, chatml)
    assert tree.prompt_ids == render_prompt(merging, chatml).ids == tuple(alone)
    assert whole_text(tree, chatml) == "The answer is 7.<|im_end|>"


def test_no_space_appears_at_the_boundary_of_sentencepiece_texts(sentencepiece: Tokenizer) -> None:
    pair = row("prompt_completion", prompt="How are you?", completion="Hello! I am fine.")
    tree = render_training_tree(pair, sentencepiece)
    together = sentencepiece("How are you?Hello! I am fine.").input_ids
    alone = sentencepiece("Hello! I am fine.", add_special_tokens=False).input_ids
    assert together[-len(alone) :] != alone  # the planted trap: alone, it begins with a space
    assert [*tree.prompt_ids, *tree.branches[0].ids] == [*together, sentencepiece.eos_token_id]
    assert tree.prompt_ids == render_prompt(pair, sentencepiece).ids


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(min_size=1), completion=st.text(min_size=1))
def test_any_text_survives_and_its_prompt_is_a_prefix(chatml: Tokenizer, prompt: str, completion: str) -> None:
    pieces = encode_pieces(chatml, [prompt, completion])
    assert pieces[0] == chatml(prompt, add_special_tokens=False).input_ids
    text = chatml.decode(pieces[0] + pieces[1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert text == prompt + completion


def test_text_rows_train_all_but_the_first_token(chatml: Tokenizer, llama3: Tokenizer) -> None:
    tree = render_training_tree(row("text", text="She has 7 eggs left."), chatml)
    ids = chatml("She has 7 eggs left.").input_ids
    assert tree.prompt_ids == tuple(ids[:1])
    assert tree.branches[0].ids == (*ids[1:], chatml.eos_token_id)
    assert set(tree.branches[0].mask) == {1}
    assert render_training_tree(row("text", text="She"), llama3).prompt_ids == (llama3.bos_token_id,)


# --- conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_assistant_turns_with_their_end_are_trained_and_nothing_else(
    template: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(template)
    turns = [SYSTEM, ASK, REPLY, ASK_AGAIN, REPLY_AGAIN]
    tree = render_training_tree(row("messages", messages=turns), tokenizer)
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}[template]
    assert trained_text(tree, tokenizer) == [REPLY["content"] + end, REPLY_AGAIN["content"] + end]
    assert tree.prompt_ids == render_prompt(row("prompt", prompt=[SYSTEM, ASK]), tokenizer).ids
    full = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ids = [*tree.prompt_ids, *tree.branches[0].ids]
    assert ids == full[: len(ids)]
    assert tokenizer.decode(full[len(ids) :]).strip() == ""  # only what follows the last end token is cut


def test_only_the_completion_of_a_conversational_pair_is_trained(chatml: Tokenizer) -> None:
    pair = row("prompt_completion", prompt=[ASK, REPLY, ASK_AGAIN], completion=[REPLY_AGAIN])
    tree = render_training_tree(pair, chatml)
    assert trained_text(tree, chatml) == [REPLY_AGAIN["content"] + "<|im_end|>"]
    assert tree.prompt_ids == render_prompt(pair, chatml).ids


def test_turns_after_the_last_reply_are_cut(chatml: Tokenizer) -> None:
    tree = render_training_tree(row("messages", messages=[ASK, REPLY, ASK_AGAIN]), chatml)
    assert tree == render_training_tree(row("messages", messages=[ASK, REPLY]), chatml)


def test_content_beginning_with_a_newline_does_not_merge_into_the_prompt(chatml: Tokenizer) -> None:
    reply = {"role": "assistant", "content": "\n\n  fine"}
    tree = render_training_tree(row("messages", messages=[ASK, reply]), chatml)
    assert tree.prompt_ids == render_prompt(row("prompt", prompt=[ASK]), chatml).ids
    assert trained_text(tree, chatml) == ["\n\n  fine<|im_end|>"]


def test_template_that_drops_thinking_serves_the_last_turn_only(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(QWEN3)
    tree = render_training_tree(
        row("prompt_completion", prompt=[ASK, REPLY, ASK_AGAIN], completion=[REPLY_AGAIN]), tokenizer
    )
    assert trained_text(tree, tokenizer) == [REPLY_AGAIN["content"] + "<|im_end|>"]
    assert "16 - 9" not in tokenizer.decode(tree.prompt_ids)
    with pytest.raises(DataError, match="changes earlier turns") as caught:
        render_training_tree(row("messages", messages=[ASK, REPLY, ASK_AGAIN, REPLY_AGAIN]), tokenizer)
    assert "chat.jsonl:3" in str(caught.value)
    assert "one row of prompt and completion for each assistant turn" in str(caught.value)


def test_generation_marks_serve_where_earlier_turns_change(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(QWEN3_MARKED)
    tree = render_training_tree(row("messages", messages=[ASK, REPLY, ASK_AGAIN, REPLY_AGAIN]), tokenizer)
    assert trained_text(tree, tokenizer) == ["7 eggs.<|im_end|>", REPLY_AGAIN["content"] + "<|im_end|>"]
    assert tree.prompt_ids == render_prompt(row("prompt", prompt=[ASK]), tokenizer).ids


def test_template_whose_prompt_the_reply_does_not_continue_is_refused(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(QWEN3)  # its generation prompt writes an empty thinking block that the reply lacks
    with pytest.raises(DataError, match="changes earlier turns"):
        render_training_tree(
            row("messages", messages=[ASK, REPLY], chat_template_kwargs={"enable_thinking": False}), tokenizer
        )


def test_template_without_end_tokens_ends_in_the_end_of_sequence(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template(UNMARKED_TURNS)
    tree = render_training_tree(row("messages", messages=[ASK, REPLY]), tokenizer)
    assert trained_text(tree, tokenizer) == [f" {REPLY['content']}\n<|im_end|>"]


def test_messages_without_a_template_are_refused_with_the_ways_out(with_template: Callable[..., Tokenizer]) -> None:
    with pytest.raises(DataError, match="has no chat template") as caught:
        render_prompt(row("prompt", prompt=[ASK]), with_template(None))
    assert "--model.chat_template" in str(caught.value)
    assert "chat.jsonl:3" in str(caught.value)


def test_template_errors_name_the_row(with_template: Callable[..., Tokenizer]) -> None:
    tokenizer = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"chat\.jsonl:3: the chat template refuses.*roles must alternate"):
        render_prompt(row("prompt", prompt=[ASK]), tokenizer)


def test_rows_that_cannot_be_trained_on_are_refused(with_template: Callable[..., Tokenizer]) -> None:
    with pytest.raises(DataError, match="prompt row, expected one with a completion"):
        render_training_tree(row("prompt", prompt="Hello"), with_template(None))
    with pytest.raises(DataError, match="messages row, expected one with a prompt"):
        render_prompt(row("messages", messages=[ASK, REPLY]), with_template(None))
    mute = with_template("{% for message in messages %}{% if message.role == 'user' %}x{% endif %}{% endfor %}")
    with pytest.raises(DataError, match="no token of the completion would be trained"):
        render_training_tree(row("messages", messages=[ASK, REPLY]), mute)
    endless = PreTrainedTokenizerFast(tokenizer_object=mute.backend_tokenizer)
    with pytest.raises(DataError, match="never learn to stop"):
        render_training_tree(row("text", text="Hello"), endless)


# --- length and display ----------------------------------------------------------------------------------------


def test_overlong_rows_are_dropped_counted_and_told(chatml: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    rows = [Row(f"id{n}", "text", f"text.jsonl:{n}", text="eggs " * n) for n in range(1, 21)]
    render = partial(render_training_tree, tokenizer=chatml)
    lengths = [token_length(render(each)) for each in rows]
    with caplog.at_level(logging.WARNING):
        kept, dropped = drop_overlong(rows, render, max_length=lengths[9])
    assert list(kept) == [f"id{n}" for n in range(1, 11)]
    assert [each.origin for each in dropped] == [f"text.jsonl:{n}" for n in range(11, 21)]
    assert f"10 of 20 rows are longer than {lengths[9]} tokens: text.jsonl:11" in caplog.text
    assert len(drop_overlong(rows, render, max_length=lengths[9], reserve=lengths[9] - lengths[4])[0]) == 5
    with pytest.raises(DataError, match="20 of 20 rows") as caught:
        drop_overlong(rows, render, max_length=2)
    assert f"--data.max_length {lengths[0]}" in str(caught.value)


def held(make: Callable[[], object]) -> int:
    """The bytes that what `make` returns holds."""
    tracemalloc.start()
    kept = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


@pytest.mark.parametrize("render", [render_training_tree, render_prompt])
def test_rows_that_fit_are_packed_and_come_out_as_they_were(chatml: Tokenizer, render: Callable[..., Any]) -> None:
    words = [f"{n} eggs are left and I am fine" for n in range(400)]
    turns = [SYSTEM, {"role": "user", "content": " ".join(words)}]
    rows = [
        replace(row("prompt_completion", prompt=turns, completion=[REPLY], answer=str(n)), id=f"id{n}")
        for n in range(5)
    ]
    rendered = {each.id: render(each, chatml) for each in rows}
    kept, dropped = drop_overlong(rows, lambda each: rendered[each.id], max_length=10**6)
    assert dict(kept) == rendered
    assert (list(kept), len(kept), dropped) == (list(rendered), 5, [])
    tokens = sum(token_length(each) for each in rendered.values())
    packed = held(lambda: drop_overlong(rows, lambda each: rendered[each.id], max_length=10**6))
    assert packed < 6 * tokens
    assert held(lambda: [render(each, chatml) for each in rows]) > 8 * tokens  # what it would be
    with pytest.raises(KeyError):
        kept["id6"]


def test_prompts_are_measured_too(chatml: Tokenizer) -> None:
    rows = [row("prompt", prompt="eggs " * 50)]
    kept, dropped = drop_overlong(rows, partial(render_prompt, tokenizer=chatml), max_length=1000, reserve=10)
    assert not dropped
    assert token_length(kept["0" * 16]) == len(kept["0" * 16].ids)


def test_describe_shows_which_tokens_are_trained(chatml: Tokenizer) -> None:
    tree = render_training_tree(row("messages", messages=[ASK, REPLY, ASK_AGAIN, REPLY_AGAIN]), chatml)
    marks = [line.split()[:2] for line in describe(tree, chatml).splitlines()]
    assert [mark for mark, _ in marks] == ["prompt", "trained", "untrained", "trained"]
    assert sum(int(count) for _, count in marks) == token_length(tree)
    assert describe(tree, chatml).splitlines()[1].endswith("|<|im_end|>|")

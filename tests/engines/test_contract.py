"""What every engine must do, run over all of them: agree with the plain forward, whatever else is in the batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import peft
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from posttrain.engines import Engine, Interrupted
from posttrain.errors import DataError, ModelError, NonFiniteError
from posttrain.models.lm import LoadedModel
from posttrain.records import Completion, Prompt, StopReason
from posttrain.seeds import derive_seed
from posttrain.settings import SamplingSettings

ALL_FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "granite"]
NO_EOS: tuple[int, ...] = ()
GREEDY = SamplingSettings(temperature=0.0, max_completion_length=16)
MakePolicy = Callable[..., LoadedModel]
MakeEngine = Callable[..., Engine]


def generate(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingSettings, *, num_samples: int = 3, seed: int = 0
) -> list[list[Completion]]:
    """Generate with seeds derived from prompt and sample, so that a prompt's seeds don't depend on its place."""
    seeds = [[derive_seed(seed, "sample", prompt.id, sample) for sample in range(num_samples)] for prompt in prompts]
    return engine.generate(prompts, sampling, num_samples=num_samples, seeds=seeds)


@torch.no_grad()
def forward_logits(model: torch.nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Return the logits `(T, V)` that predict each completion token, from one plain forward without a cache."""
    ids = torch.tensor([[*prompt, *completion]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : ids.shape[1] - 1]


def forward_logprobs(
    model: torch.nn.Module, prompt: Prompt, completion: Completion, *, temperature: float = 1.0
) -> torch.Tensor:
    """Return the log-prob of each completion token, from one plain forward."""
    logprobs = (forward_logits(model, prompt.ids, completion.ids) / temperature).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)


def largest_gap(
    model: torch.nn.Module, prompts: Sequence[Prompt], trees: list[list[Completion]], *, temperature: float = 1.0
) -> float:
    """Return the largest difference between the engine's log-probs and those of the plain forward."""
    return max(
        float(
            (forward_logprobs(model, prompt, each, temperature=temperature) - torch.tensor(each.engine_logprobs))
            .abs()
            .max()
        )
        for prompt, completions in zip(prompts, trees, strict=True)
        for each in completions
    )


def naive_greedy(policy: LoadedModel, prompt: Prompt, max_length: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < max_length and not (ids and ids[-1] in policy.eos_ids):
        ids.append(int(forward_logits(policy.model, prompt.ids, [*ids, 0])[-1].argmax()))
    return ids


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_greedy_is_the_naive_full_forward(
    family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy(family)
    trees = generate(make_engine(policy, max_sequences=4), prompts, GREEDY, num_samples=2)
    for prompt, completions in zip(prompts, trees, strict=True):
        expected = naive_greedy(policy, prompt, GREEDY.max_completion_length)
        assert [list(completion.ids) for completion in completions] == [expected, expected]
    assert largest_gap(policy.model, prompts, trees) < 1e-5


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_logprobs_are_the_forwards_at_the_temperature(
    family: str, temperature: float, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy(family)
    sampling = SamplingSettings(temperature=temperature, top_k=30, top_p=0.95, min_p=0.01, max_completion_length=12)
    trees = generate(make_engine(policy, max_sequences=7), prompts, sampling)
    assert largest_gap(policy.model, prompts, trees, temperature=temperature) < 2e-5
    assert largest_gap(policy.model, prompts, trees, temperature=temperature + 0.1) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_completion_depends_on_its_seed_alone(
    family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy(family)
    sampling = SamplingSettings(max_completion_length=24)
    expected = generate(make_engine(policy, max_sequences=64), prompts, sampling)
    assert len({len(completion.ids) for completions in expected for completion in completions}) > 3

    def ids(trees: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
        return [[completion.ids for completion in completions] for completions in trees]

    for max_sequences in (1, 3):
        assert ids(generate(make_engine(policy, max_sequences=max_sequences), prompts, sampling)) == ids(expected)
    engine = make_engine(policy, max_sequences=5)
    assert ids(generate(engine, prompts[::-1], sampling))[::-1] == ids(expected)
    assert ids(generate(engine, prompts[2:3], sampling)) == ids(expected)[2:3]
    assert ids(generate(engine, prompts, sampling, num_samples=1)) == [row[:1] for row in ids(expected)]
    assert ids(generate(engine, prompts, sampling, seed=1)) != ids(expected)


def test_the_token_limit_only_cuts(make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    engine = make_engine(make_policy("llama"))
    long = generate(engine, prompts, SamplingSettings(max_completion_length=80))
    short = generate(engine, prompts, SamplingSettings(max_completion_length=5))
    for before, after in zip(long, short, strict=True):
        assert [completion.ids[:5] for completion in before] == [completion.ids for completion in after]


def test_the_same_prompt_twice_is_two_requests(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    engine = make_engine(make_policy("qwen3"))
    twin = replace(prompts[0], id="twin")
    sampling = SamplingSettings(max_completion_length=10)
    trees = generate(engine, [prompts[0], prompts[1], twin], sampling)
    texts = [[completion.text for completion in tree] for tree in trees]
    assert texts[0] == [completion.text for completion in generate(engine, prompts[:1], sampling)[0]]
    assert texts[2] == [completion.text for completion in generate(engine, [twin], sampling)[0]]
    assert texts[0] != texts[2]


def test_every_eos_id_ends_a_completion_and_stays_in_it(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    eos_ids = (1, 2, 30)  # the last is no special token to the tokenizer
    sampling = SamplingSettings(temperature=1.5, max_completion_length=40)
    trees = generate(make_engine(make_policy("llama", eos_ids=eos_ids)), prompts, sampling, num_samples=16)
    completions = [completion for tree in trees for completion in tree]
    for completion in completions:
        ended = completion.ids[-1] in eos_ids
        assert completion.stop_reason == (StopReason.EOS if ended else StopReason.LENGTH)
        assert ended or len(completion.ids) == 40
        assert not set(completion.ids[:-1]) & set(eos_ids)
        kept = completion.ids[:-1] if ended else completion.ids
        assert completion.text == tokenizer.decode(kept, skip_special_tokens=True)
        assert len(completion.engine_logprobs) == len(completion.ids)
    assert {completion.ids[-1] for completion in completions} >= set(eos_ids)


def test_a_stop_string_that_spans_tokens_ends_a_completion(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = make_engine(make_policy("llama", eos_ids=NO_EOS), max_sequences=6)
    unstopped = generate(engine, prompts, SamplingSettings(max_completion_length=30))
    stop = unstopped[2][1].text[5:9]
    other = unstopped[0][0].text[7:10]
    stopped = generate(engine, prompts, SamplingSettings(max_completion_length=30, stop=[stop, other]))
    assert len(tokenizer(stop).input_ids) > 1
    assert stopped[2][1].stop_reason == stopped[0][0].stop_reason == StopReason.STOP_STRING
    for before, after in zip(chain(*unstopped), chain(*stopped), strict=True):
        assert after.ids == before.ids[: len(after.ids)]
        assert stop not in after.text
        assert other not in after.text
        if after.stop_reason == StopReason.STOP_STRING:
            decoded = tokenizer.decode(after.ids, skip_special_tokens=True)
            assert stop in decoded or other in decoded
            assert stop not in tokenizer.decode(after.ids[:-1], skip_special_tokens=True)
            assert other not in tokenizer.decode(after.ids[:-1], skip_special_tokens=True)
            assert decoded.startswith(after.text)
        else:
            assert (after.ids, after.text, after.stop_reason) == (before.ids, before.text, before.stop_reason)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_new_weights_are_sampled_from_at_once(
    family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy, newer = make_policy(family), make_policy(family, seed=1)
    untouched = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    engine = make_engine(policy)
    sampling = SamplingSettings(max_completion_length=12)
    before = generate(engine, prompts, sampling)
    engine.load_weights(newer.model)
    after = generate(engine, prompts, sampling)
    assert largest_gap(newer.model, prompts, after) < 1e-5
    assert largest_gap(newer.model, prompts, before) > 1e-2
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in policy.model.state_dict().items())
    engine.load_weights(policy.model)
    assert generate(engine, prompts, sampling) == before


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_an_adapter_is_folded_in(
    family: str, make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy(family)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(
        policy.model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    engine = make_engine(replace(policy, model=adapted))
    sampling = SamplingSettings(max_completion_length=12)
    fresh = generate(engine, prompts, sampling)
    assert largest_gap(adapted, prompts, fresh) < 1e-5
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert largest_gap(adapted, prompts, generate(engine, prompts, sampling)) > 1e-2
    engine.load_weights(adapted)
    trained = generate(engine, prompts, sampling)
    assert largest_gap(adapted, prompts, trained) < 1e-5
    with adapted.disable_adapter():
        assert largest_gap(adapted, prompts, fresh) < 1e-5
        assert largest_gap(adapted, prompts, trained) > 1e-2


def test_impossible_requests_are_refused(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy("llama")
    engine = make_engine(policy)
    with pytest.raises(DataError, match=r"prompt-0.*at least one token"):
        generate(engine, [replace(prompts[0], ids=())], GREEDY)
    with pytest.raises(DataError, match="token ids below 64, and got 64"):
        generate(engine, [replace(prompts[0], ids=(5, 64))], GREEDY)
    with pytest.raises(ModelError, match=r"context of 128\n.*max_completion_length = 119$"):
        generate(engine, prompts[:1], SamplingSettings(max_completion_length=120))
    assert generate(engine, [], GREEDY) == []
    full = generate(engine, prompts[:1], SamplingSettings(temperature=0.0, max_completion_length=119))
    assert largest_gap(policy.model, prompts[:1], full) < 1e-5
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        generate(engine, prompts, GREEDY)


def test_weights_of_another_architecture_are_refused(make_policy: MakePolicy, make_engine: MakeEngine) -> None:
    engine = make_engine(make_policy("llama"))
    with pytest.raises(ModelError, match="q_norm"):
        engine.load_weights(make_policy("qwen3").model)


def test_nan_logits_are_an_error(make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]) -> None:
    policy = make_policy("llama", eos_ids=NO_EOS)
    engine = make_engine(policy)
    with torch.no_grad():
        policy.model.lm_head.weight[5] = torch.nan
    engine.load_weights(policy.model)
    with pytest.raises(NonFiniteError):
        generate(engine, prompts, GREEDY)


def test_should_stop_interrupts_and_leaves_the_engine_usable(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy("llama", eos_ids=NO_EOS)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 6

    engine = make_engine(policy, should_stop=should_stop)
    with pytest.raises(Interrupted):
        generate(engine, prompts, GREEDY)
    assert asked == 6
    assert generate(engine, prompts, GREEDY) == generate(make_engine(policy), prompts, GREEDY)


def test_what_is_done_is_not_made_again_and_what_ends_is_kept_at_once(
    make_policy: MakePolicy, make_engine: MakeEngine, prompts: list[Prompt]
) -> None:
    policy = make_policy("llama")
    sampling = SamplingSettings(max_completion_length=24)
    seeds = [[10 * place + sample for sample in range(2)] for place in range(len(prompts))]
    whole = make_engine(policy).generate(prompts, sampling, num_samples=2, seeds=seeds)
    done: dict[tuple[int, int], Completion] = {}
    stopping = make_engine(policy, max_sequences=2, should_stop=lambda: len(done) >= 3)
    with pytest.raises(Interrupted):
        stopping.generate(prompts, sampling, num_samples=2, seeds=seeds, done=done)
    assert 3 <= len(done) < 2 * len(prompts)
    assert all(completion.ids == whole[place][sample].ids for (place, sample), completion in done.items())
    known = dict(done)
    rest = make_engine(policy).generate(prompts, sampling, num_samples=2, seeds=seeds, done=done)
    assert [[one.ids for one in group] for group in rest] == [[one.ids for one in group] for group in whole]
    assert all(rest[place][sample] is completion for (place, sample), completion in known.items())
    assert make_engine(policy).generate(prompts, sampling, num_samples=2, seeds=seeds, done=done) == rest

"""How the native engine works inside: what it computes, and what its cache and its groups hold."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from posttrain.engines.cache import BLOCK, KeyValueCache, holes_and_movers
from posttrain.engines.decoding import PREFILL_TOKENS
from posttrain.engines.layouts import Grouping
from posttrain.engines.native import NativeEngine
from posttrain.errors import ModelError
from posttrain.models.lm import LoadedModel
from posttrain.records import Prompt
from posttrain.settings import EngineSettings, SamplingSettings

CPU = torch.device("cpu")


def widths_of_forwards(engine: NativeEngine) -> list[int]:
    """Return the list to which every forward of the engine's model appends its number of tokens."""
    widths: list[int] = []
    embeddings = engine._open_model().get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].numel()))
    return widths


def test_each_distinct_prompt_is_computed_once_and_rows_stay_full(
    make_policy: Callable[..., LoadedModel], prompts: list[Prompt]
) -> None:
    engine = NativeEngine(make_policy("llama", eos_ids=()), EngineSettings(max_sequences=6))
    widths = widths_of_forwards(engine)
    repeated = [*prompts, replace(prompts[0], id="again")]  # 6 prompts of which 5 are distinct
    engine.generate(
        repeated, SamplingSettings(max_completion_length=9), num_samples=4, seeds=[[1, 2, 3, 4]] * len(repeated)
    )
    prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    assert sum(widths) == prompt_tokens + 6 * 4 * 8  # the last token of a completion is never computed
    decoding = [width for width in widths if width == 6]
    assert len(decoding) == 4 * 8  # 24 completions are 4 full batches of 6


def test_prompts_beyond_a_pack_take_several_forwards(make_policy: Callable[..., LoadedModel]) -> None:
    policy = make_policy("llama")
    engine = NativeEngine(policy, EngineSettings())
    widths = widths_of_forwards(engine)
    count = PREFILL_TOKENS // 100 + 1
    prompts = [Prompt(f"{index}", (4 + index, *[9] * 99), "", {}) for index in range(count)]
    engine.generate(prompts, SamplingSettings(max_completion_length=1), num_samples=1, seeds=[[0]] * count)
    assert widths == [(count - 1) * 100, 100]


def test_the_policy_may_go_once_its_weights_are_copied(make_policy: Callable[..., LoadedModel]) -> None:
    policy = make_policy("llama")
    engine, loaded = NativeEngine(policy, EngineSettings()), weakref.ref(policy.model)
    del policy
    gc.collect()
    assert loaded() is None
    engine.close()


def test_closing_frees_the_weights(make_policy: Callable[..., LoadedModel]) -> None:
    engine = NativeEngine(make_policy("llama"), EngineSettings())
    model = weakref.ref(engine._open_model())
    assert model() is not None
    engine.close()
    gc.collect()
    assert model() is None


def test_an_architecture_outside_the_registry_is_refused(make_policy: Callable[..., LoadedModel]) -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        NativeEngine(replace(make_policy("llama"), model=bloom), EngineSettings())


def test_cache_keeps_what_it_holds_when_it_grows_and_moves() -> None:
    cache = KeyValueCache()
    cache.reserve(2, 5)
    keys, values = torch.randn(4, 3, 8), torch.randn(4, 3, 6)  # (N, Hkv, D): a token each at two slots
    slots, positions = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 4, 4])
    cache.write(0, slots, positions, keys, values)
    cache.reserve(3, BLOCK + 1)
    grown_keys, grown_values = cache.read(0, 3)
    assert grown_keys.shape == (3, 3, 2 * BLOCK, 8)
    assert torch.equal(grown_keys[slots, :, positions], keys)
    assert torch.equal(grown_values[slots, :, positions], values)
    cache.move(torch.tensor([1]), torch.tensor([2]), 5)
    assert torch.equal(grown_keys[2], grown_keys[1])
    assert grown_keys[:, :, 5:].abs().max() == 0


@given(keep=st.lists(st.booleans(), min_size=1, max_size=40))
def test_moves_leave_the_kept_slots_first(keep: list[bool]) -> None:
    slots = torch.arange(len(keep))
    holes, movers = holes_and_movers(torch.tensor(keep))
    slots[holes] = slots[movers]
    assert sorted(slots[: sum(keep)].tolist()) == [slot for slot, kept in enumerate(keep) if kept]


@settings(deadline=None)
@given(slots=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_grouping_pairs_every_row_with_its_prompt(slots: list[int]) -> None:
    grouping = Grouping(slots, [3, 1, 4, 1, 5], CPU)
    rows = torch.randn(len(slots), 2, 3, 4)  # (B, Hkv, Q, D)
    prompts = torch.randn(5, 2, 4, 6)
    expected = rows @ prompts[slots]
    torch.testing.assert_close(grouping.scatter(grouping.gather(rows) @ prompts), expected)
    assert grouping.prompt_lengths.tolist() == [[3, 1, 4, 1, 5][slot] for slot in slots]

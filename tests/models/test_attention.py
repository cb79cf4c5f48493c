"""The contract of prompt trees: log-probs and gradients equal those of separate, unpadded sequences."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.data.trees import TreeBatch, build_batch
from posttrain.errors import ModelError
from posttrain.models.attention import ATTENTION_NAME
from posttrain.models.logprobs import completion_logprobs
from posttrain.records import Branch, TokenTree

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "granite", "cohere", "gpt2"]
VOCABULARY = 64
TEMPERATURE = 0.8
MakeModel = Callable[..., PreTrainedModel]


def random_trees(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TokenTree]:
    """Return trees with the given lengths of prompt and branches, and random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())

    return [
        TokenTree(ids(prompt), tuple(Branch(ids(length), (1,) * length) for length in branches))
        for prompt, branches in shapes
    ]


# Windows of 4 and 5 end inside prompts, at their borders and inside branches.
TREES = random_trees([(7, [3, 8, 1]), (1, [6]), (4, [2, 2, 0, 9])])


def of_separate_sequences(model: PreTrainedModel, trees: Sequence[TokenTree]) -> tuple[Tensor, list[Tensor]]:
    """Return log-probs `(N,)` and gradients by the plain model, one unpadded sequence at a time."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    found = []
    for tree in trees:
        for branch in tree.branches:
            logits = model(torch.tensor([[*tree.prompt_ids, *branch.ids]]), use_cache=False).logits[0]
            before = (logits[len(tree.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
            found.append(before.gather(1, torch.tensor(branch.ids, dtype=torch.long)[:, None]).squeeze(1))
    logprobs = torch.cat(found)
    return logprobs.detach(), gradients(model, logprobs)


def of_batch(model: PreTrainedModel, batch: TreeBatch) -> tuple[Tensor, list[Tensor]]:
    """Return log-probs `(N,)` and gradients by our attention, all in one forward."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(ATTENTION_NAME)
    logprobs = completion_logprobs(model, batch, temperature=TEMPERATURE).logprobs[batch.token_mask]
    return logprobs.detach(), gradients(model, logprobs)


def gradients(model: PreTrainedModel, logprobs: Tensor) -> list[Tensor]:
    """Return the gradient of each parameter for a weighted sum, different for each token."""
    weights = torch.linspace(-1, 2, len(logprobs))
    return list(torch.autograd.grad((logprobs * weights).sum(), list(model.parameters()), allow_unused=False))


def assert_same(got: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    """Assert equality within 1e-5 of the largest entry of each tensor.

    A gradient that is 0, as those of query and key where one key is seen, has no size: 1e-6 of all gradients' largest.
    """
    largest = max(gradient.abs().max() for gradient in expected[1])
    for one, other in zip([got[0], *got[1]], [expected[0], *expected[1]], strict=True):
        bound = 1e-5 * other.abs().max() if other.any() else 1e-6 * largest
        assert (one - other).abs().max() <= bound


@pytest.mark.parametrize("layout", ["tree", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layout_equals_separate_sequences(make_model: MakeModel, family: str, layout: str) -> None:
    model = make_model(family)
    assert_same(of_batch(model, build_batch(TREES, layout=layout)), of_separate_sequences(model, TREES))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral"])
def test_trees_equal_separate_sequences_with_heads_that_the_kernels_serve(make_model: MakeModel, family: str) -> None:
    """Their heads are a multiple of 32; trees of several blocks of 32 keys, and windows that end within them."""
    window = {"sliding_window": 40} if family in ("qwen2", "gemma3_text", "mistral") else {}
    model = make_model(family, head_dim=32, **window)
    trees = random_trees([(45, [33, 8, 40]), (1, [6]), (32, [32, 2])])
    assert_same(of_batch(model, build_batch(trees)), of_separate_sequences(model, trees))


shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=4
).filter(lambda shapes: any(length for _, branches in shapes for length in branches))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(shapes=[(1, [1])], seed=0, head_dim=32)
@given(shapes=shapes, seed=st.integers(0, 1000), head_dim=st.sampled_from([8, 32]))
def test_any_tree_equals_separate_sequences(make_model: MakeModel, shapes, seed: int, head_dim: int) -> None:
    trees = random_trees(shapes, seed)
    model = make_model("llama", head_dim=head_dim)
    assert_same(of_batch(model, build_batch(trees)), of_separate_sequences(model, trees))


def seeing_each_other(batch: TreeBatch) -> TreeBatch:
    """Make the first branch part of its prompt, for attention only: the next branches see it."""
    (start, length), *prompts = batch.prompt_spans
    first, *branches = batch.branch_spans
    merged = ((start, length + first[1]), *prompts)
    return replace(batch, prompt_spans=merged, branch_spans=tuple(branches), branch_prompts=batch.branch_prompts[1:])


def without_restart(batch: TreeBatch) -> TreeBatch:
    return replace(batch, position_ids=torch.arange(batch.input_ids.numel())[None])


def under_another_prompt(batch: TreeBatch) -> TreeBatch:
    return replace(batch, branch_prompts=(*batch.branch_prompts[:-1], 0))


@pytest.mark.parametrize("fault", [seeing_each_other, without_restart, under_another_prompt])
def test_a_wrong_layout_is_caught(make_model: MakeModel, fault: Callable[[TreeBatch], TreeBatch]) -> None:
    model = make_model("llama")
    with pytest.raises(AssertionError):
        assert_same(of_batch(model, fault(build_batch(TREES))), of_separate_sequences(model, TREES))


def test_an_ignored_window_is_caught(make_model: MakeModel) -> None:
    expected = of_separate_sequences(make_model("mistral"), TREES)
    with pytest.raises(AssertionError):
        assert_same(of_batch(make_model("mistral", sliding_window=None), build_batch(TREES)), expected)


def test_gradient_checkpointing_changes_nothing(make_model: MakeModel) -> None:
    model = make_model("gemma2")
    batch = build_batch(TREES)
    expected = of_batch(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(of_batch(model.train(), batch), expected)


def test_branches_without_tokens_and_no_gradient_under_no_grad(make_model: MakeModel) -> None:
    model = make_model("llama")
    model.set_attn_implementation(ATTENTION_NAME)
    with torch.no_grad():
        result = completion_logprobs(model, build_batch(random_trees([(3, [0, 0]), (2, [0])])))
    assert result.logprobs.shape == (3, 0)
    assert not result.logprobs.requires_grad


def test_entropy_is_of_the_same_distribution(make_model: MakeModel) -> None:
    model = make_model("llama")
    batch = build_batch(TREES)
    logits = model(torch.tensor([[*TREES[1].prompt_ids, *TREES[1].branches[0].ids]])).logits[0, :-1] / TEMPERATURE
    expected = torch.distributions.Categorical(logits=logits).entropy()
    model.set_attn_implementation(ATTENTION_NAME)
    entropy = completion_logprobs(model, batch, temperature=TEMPERATURE).entropy
    torch.testing.assert_close(entropy[3, :6], expected, rtol=1e-5, atol=1e-6)
    assert not entropy[~batch.token_mask].any()


def test_prompt_tokens_are_computed_once(make_model: MakeModel) -> None:
    """The embedding, which every token of the forward passes, sees each prompt once."""
    model = make_model("llama")
    model.set_attn_implementation(ATTENTION_NAME)
    counts: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
    trees = random_trees([(20, [3, 3, 3, 3])])
    for layout in ("tree", "rows"):
        completion_logprobs(model, build_batch(trees, layout=layout))
    assert counts == [32, 92]


def test_attention_without_a_layout_is_refused(make_model: MakeModel) -> None:
    model = make_model("llama")
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(ModelError, match="needs a layout"):
        model(torch.tensor([[1, 2]]))


def test_trees_on_a_model_with_its_own_attention_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match="was not loaded for prompt trees"):
        completion_logprobs(make_model("llama"), build_batch(TREES))

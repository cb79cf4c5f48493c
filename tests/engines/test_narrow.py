"""An engine on weights that are narrower than its products: they stay so, and an adapter is computed beside them."""

import copy
from collections.abc import Callable
from dataclasses import replace

import peft
import pytest
import torch
from peft import PeftModel

from posttrain.engines import products
from posttrain.engines.native import NativeEngine
from posttrain.engines.products import AdaptedLinear, CompiledLinear, JoinedProduct
from posttrain.kernels.operations import compiled_kernels
from posttrain.models.frozen import keep_stored_weights
from posttrain.models.lm import LoadedModel
from posttrain.models.lora import folded_weights
from posttrain.records import Prompt
from posttrain.settings import EngineSettings, SamplingSettings
from tests.engines.conftest import FAMILIES
from tests.engines.test_contract import generate, largest_gap

SAMPLING = SamplingSettings(max_completion_length=12)
MakePolicy = Callable[..., LoadedModel]


def narrowed(policy: LoadedModel) -> LoadedModel:
    """Return the policy with its weights rounded to bfloat16 and kept so, under products in float32."""
    model = copy.deepcopy(policy.model).bfloat16().requires_grad_(False)
    for name, buffer in policy.model.named_buffers():
        model.get_buffer(name).data = buffer.clone()
    keep_stored_weights(model, torch.float32)
    model.compute_dtype = torch.float32
    return replace(policy, model=model)


def widened(policy: LoadedModel) -> LoadedModel:
    """Return a policy whose weights have the same values in float32."""
    model = copy.deepcopy(policy.model)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return replace(policy, model=model)


def adapted(policy: LoadedModel, r: int = 4, **options) -> LoadedModel:
    """Return the policy with an adapter that changes what it samples."""
    torch.manual_seed(3)
    config = peft.LoraConfig(**{"r": r, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(copy.deepcopy(policy.model), config)
    moved(model)
    return replace(policy, model=model)


@torch.no_grad()
def moved(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2)


def joined_products(engine: NativeEngine) -> list[JoinedProduct]:
    assert engine._weights is not None
    return list(dict.fromkeys(engine._weights._product_of.values()))


def weights_of(product: JoinedProduct) -> list[torch.Tensor]:
    """Return the weights that a product reads; those of layers that were joined by copying are one."""
    whole = product.whole
    if isinstance(whole, CompiledLinear):
        parts, _, _, *tensors = whole.linear.kept
        return tensors[: len(parts)]
    frozen = whole.frozen if isinstance(whole, AdaptedLinear) else whole
    return [frozen.weight]


def stored_dtypes(engine: NativeEngine) -> set[torch.dtype]:
    return {weight.dtype for product in joined_products(engine) for weight in weights_of(product)}


def is_adapted(product: JoinedProduct) -> bool:
    whole = product.whole
    return isinstance(whole, AdaptedLinear) or (isinstance(whole, CompiledLinear) and whole.linear.ranks > 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("rank", [0, 4, 20])
def test_it_samples_from_the_policy(
    family: str,
    compiled: bool,
    rank: int,
    make_policy: MakePolicy,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    plain = narrowed(make_policy(family))
    policy = adapted(plain, rank) if rank else plain
    engine = NativeEngine(policy, EngineSettings())
    completions = generate(engine, prompts, SAMPLING)
    assert largest_gap(policy.model, prompts, completions) < 1e-5
    assert stored_dtypes(engine) == {torch.bfloat16}
    if rank:
        assert largest_gap(plain.model, prompts, completions) > 1e-2
        assert sum(map(is_adapted, joined_products(engine))) == 2 * 4
    kernels = compiled and compiled_kernels(torch.device("cpu"), torch.float32) is not None
    assert engine._stacks is (kernels and family in {"llama", "mistral", "qwen2", "qwen3"})


def test_an_adapter_folded_into_narrow_weights_would_be_rounded(make_policy: MakePolicy, prompts: list[Prompt]) -> None:
    plain = narrowed(make_policy("llama"))
    policy = adapted(plain)
    rounded = copy.deepcopy(plain.model)
    for name, weight in folded_weights(policy.model):
        rounded.get_parameter(name).data.copy_(weight)
    completions = generate(NativeEngine(replace(plain, model=rounded), EngineSettings()), prompts, SAMPLING)
    assert largest_gap(rounded, prompts, completions) < 1e-5
    assert largest_gap(policy.model, prompts, completions) > 1e-4


def test_adapters_of_some_layers_and_of_none(make_policy: MakePolicy, prompts: list[Prompt]) -> None:
    policy = adapted(narrowed(make_policy("qwen2")), target_modules=["q_proj", "v_proj", "down_proj"])
    engine = NativeEngine(policy, EngineSettings())
    assert largest_gap(policy.model, prompts, generate(engine, prompts, SAMPLING)) < 1e-5
    assert sum(map(is_adapted, joined_products(engine))) == 2 * 2
    with policy.model.disable_adapter():
        engine.load_weights(policy.model)
        assert largest_gap(policy.model, prompts, generate(engine, prompts, SAMPLING)) < 1e-5
    assert not any(map(is_adapted, joined_products(engine)))


def test_several_active_adapters_add_up(make_policy: MakePolicy, prompts: list[Prompt]) -> None:
    policy = adapted(narrowed(make_policy("llama")))
    policy.model.add_adapter("second", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"]))
    moved(policy.model)
    policy.model.base_model.set_adapter(["default", "second"])
    engine = NativeEngine(policy, EngineSettings())
    assert largest_gap(policy.model, prompts, generate(engine, prompts, SAMPLING)) < 1e-5


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_frozen_weights_are_shared_with_the_policy(
    family: str, narrow: bool, make_policy: MakePolicy, prompts: list[Prompt]
) -> None:
    if compiled_kernels(torch.device("cpu"), torch.float32) is None:
        pytest.skip("no C++ compiler on this machine")
    plain = make_policy(family)
    policy = adapted(narrowed(plain) if narrow else plain)
    engine = NativeEngine(policy, EngineSettings())
    for _ in range(2):
        own = {parameter.data_ptr() for parameter in policy.model.parameters() if not parameter.requires_grad}
        assert {parameter.data_ptr() for parameter in engine._open_model().parameters()} <= own
        read = {weight.data_ptr() for product in joined_products(engine) for weight in weights_of(product)}
        assert read <= own
        moved(policy.model)
        engine.load_weights(policy.model)
        assert largest_gap(policy.model, prompts, generate(engine, prompts, SAMPLING)) < 1e-5


def test_adapters_are_copies(make_policy: MakePolicy, prompts: list[Prompt]) -> None:
    policy = adapted(make_policy("qwen3"))
    engine = NativeEngine(policy, EngineSettings())
    before = generate(engine, prompts, SAMPLING)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    assert generate(engine, prompts, SAMPLING) == before


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_weights_of_any_dtype_follow_each_other(
    family: str, compiled: bool, make_policy: MakePolicy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    whole, other = make_policy(family), make_policy(family, seed=1)
    narrow = narrowed(other)
    policies = [whole, narrow, adapted(narrow), narrow, adapted(whole), whole, widened(narrow)]
    for first in (whole, narrow):
        engine = NativeEngine(first, EngineSettings())
        for policy in policies:
            engine.load_weights(policy.model)
            assert largest_gap(policy.model, prompts, generate(engine, prompts, SAMPLING)) < 1e-5


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_trained_weights_are_copies(
    family: str, compiled: bool, make_policy: MakePolicy, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    policy = make_policy(family)
    engine = NativeEngine(policy, EngineSettings())
    before = generate(engine, prompts, SAMPLING)
    for parameter in policy.model.parameters():
        assert parameter.requires_grad
        parameter.data.zero_()
    assert generate(engine, prompts, SAMPLING) == before

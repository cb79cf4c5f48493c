"""LoRA adapters on one frozen base: adding them, folding them into plain weights, and the reference they imply.

Floor 1: adapters are peft's. LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021, arXiv 2106.09685:
W + (lora_alpha / lora_r) B A, with B = 0 at the start.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.frozen import dense_weight
from posttrain.models.logprobs import Model, compute_dtype, plain_model
from posttrain.models.lora_linear import fuse_adapters
from posttrain.settings import ModelSettings

POLICY_ADAPTER, REFERENCE_ADAPTER, CRITIC_ADAPTER = "default", "ref", "critic"


def add_lora(model: PreTrainedModel, settings: ModelSettings) -> PeftModel:
    """Return the model with a fresh trainable adapter in float32; its own weights are frozen.

    Draws from torch's global generator. Raises ModelError where no module has the names asked for.
    """
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config, adapter_name=POLICY_ADAPTER)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"no LoRA adapter fits lora_target_modules = {settings.lora_target_modules!r}: {reason}",
            fix='lora_target_modules = "all-linear"',
        ) from error
    assert isinstance(adapted, PeftModel)
    check_adapters(adapted)
    fuse_adapters(adapted)
    return adapted


def check_adapters(model: PeftModel) -> None:
    """Raise ModelError for adapters that can't be folded exactly: anything but plain LoRA on inner linear layers."""
    plain = plain_model(model)
    ends = {plain.get_input_embeddings(), plain.get_output_embeddings()}
    for name, module in plain.named_modules():
        if not isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            continue
        plain_lora = (
            isinstance(module, LoraLayer)
            and isinstance(module.base_layer, nn.Linear)
            and not (module.lora_variant or any(module.lora_bias.values()))
        )
        if module in ends or not plain_lora:
            raise ModelError(
                f"the adapter changes {name} in a way other than LoRA on a linear layer inside the model",
                fix="merge it with peft's merge_and_unload() and start from the merged model",
            )


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What the active adapters add to a weight `(out, in)`: outer @ inner, in float32."""

    inner: Tensor  # (r, in)
    outer: Tensor  # (out, r), scaled

    def folded_into(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a new weight in `dtype`, added up in float32, so that the frozen one never drifts."""
        return torch.addmm(weight.float(), self.outer, self.inner).to(dtype)


@torch.no_grad()
def unfolded_weights(model: Model) -> Iterator[tuple[str, Tensor, LowRank | None]]:
    """Yield name and tensor of each parameter of the plain transformers model, and what active adapters add to it.

    The tensors are the model's own memory; weights in 4 bits come out of them. Tied weights come once, as in
    `named_parameters`.
    """
    plain = plain_model(model)
    adapted = {f"{name}.base_layer.weight": module for name, module in plain.named_modules() if _adapts(module)}
    for name, parameter in plain.named_parameters():
        if ".lora_" not in name:
            added = _low_rank(adapted[name]) if name in adapted else None
            yield name.replace(".base_layer.", "."), dense_weight(parameter), added


def folded_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of each parameter of the plain transformers model, with active adapters folded in.

    A folded tensor is new and in the dtype of the model's products; the others are as in `unfolded_weights`.
    """
    dtype = compute_dtype(plain_model(model))
    for name, weight, added in unfolded_weights(model):
        yield name, weight.detach() if added is None else added.folded_into(weight, dtype)


def _adapts(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and not module.disable_adapters


def _low_rank(layer: Any) -> LowRank | None:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return None
    inner = torch.cat([layer.lora_A[name].weight.float() for name in names])
    outer = torch.cat([layer.lora_B[name].weight.float() * layer.scaling[name] for name in names], dim=1)
    return LowRank(inner, outer)


@torch.no_grad()
def add_critic_adapter(model: PeftModel) -> None:
    """Put a second trainable adapter on the base, equal to the policy's; the policy's stays the active one."""
    config = copy.deepcopy(model.peft_config[POLICY_ADAPTER])
    with torch.random.fork_rng(devices=[]):
        model.add_adapter(CRITIC_ADAPTER, config)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if f".{CRITIC_ADAPTER}." in name:
            parameter.copy_(parameters[name.replace(f".{CRITIC_ADAPTER}.", f".{POLICY_ADAPTER}.")])
    model.set_adapter(POLICY_ADAPTER)


@contextmanager
def critic_active(model: PeftModel) -> Iterator[PeftModel]:
    """Make the model its critic inside the context: its adapter alone is computed with, and trained.

    Never between a forward and its backward.
    """
    model.set_adapter(CRITIC_ADAPTER)
    try:
        yield model
    finally:
        model.set_adapter(POLICY_ADAPTER)


@contextmanager
def reference(model: PeftModel) -> Iterator[PeftModel]:
    """Make the model its own reference inside the context: the adapter it was loaded with, or none if it is fresh.

    Use it under `torch.no_grad()`, and never between a forward and its backward.
    """
    if REFERENCE_ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield model
        return
    model.set_adapter(REFERENCE_ADAPTER)
    try:
        yield model
    finally:
        model.set_adapter(POLICY_ADAPTER)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that is never trained: the reference of full fine-tuning."""
    return copy.deepcopy(model).requires_grad_(False).eval()

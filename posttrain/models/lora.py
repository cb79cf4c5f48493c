"""LoRA adapters on one frozen base: adding them, folding them into plain weights, and the reference they imply.

Floor 1: adapters are peft's. LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021, arXiv 2106.09685:
W + (lora_alpha / lora_r) B A, with B = 0 at the start.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.logprobs import Model, plain_model
from posttrain.models.lora_linear import fuse_adapters
from posttrain.models.quantized import dense_weight
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


@torch.no_grad()
def folded_weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of each parameter of the plain transformers model, with the active adapter folded in.

    A folded tensor is new: W + delta in float32, cast to W's dtype, so W itself never drifts. Others are the model's
    own memory; weights in 4 bits come out of them. Tied weights come once, as in `named_parameters`.
    """
    plain = plain_model(model)
    deltas = {f"{name}.base_layer.weight": module for name, module in plain.named_modules() if _adapts(module)}
    for name, parameter in plain.named_parameters():
        if name in deltas:
            layer, weight = deltas[name], dense_weight(parameter)
            folded = weight.float()
            for adapter in layer.active_adapters:
                folded = folded + layer.get_delta_weight(adapter).float()
            yield name.replace(".base_layer.", "."), folded.to(weight.dtype)
        elif ".lora_" not in name:
            yield name.replace(".base_layer.", "."), dense_weight(parameter).detach()


def _adapts(module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and not module.disable_adapters


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

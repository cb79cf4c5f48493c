"""The fused LoRA layer against peft's own: values, gradients, and the cases that it leaves to peft."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from posttrain.models.lora_linear import FusedLoraLinear, fuse_adapters


def adapted_pair(*, bias: bool = False, **options: object) -> tuple[PeftModel, PeftModel]:
    """Return a model of one linear layer with a random adapter, by peft and fused."""
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], **options)  # type: ignore[arg-type]
    by_peft = get_peft_model(nn.Sequential(nn.Linear(6, 5, bias=bias)), config)
    nn.init.normal_(layer(by_peft).lora_B["default"].weight)
    fused = copy.deepcopy(by_peft)
    fuse_adapters(fused)
    assert isinstance(layer(fused), FusedLoraLinear)
    return by_peft, fused


def layer(model: PeftModel) -> LoraLinear:
    return next(module for module in model.modules() if isinstance(module, LoraLinear))


def values_and_gradients(model: PeftModel, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x = torch.linspace(-1, 1, 2 * 4 * 6, dtype=dtype).view(2, 4, 6).requires_grad_()
    out = model(x)
    (out * torch.arange(5)).sum().backward()
    return [out, x.grad, layer(model).lora_A["default"].weight.grad, layer(model).lora_B["default"].weight.grad]


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_pefts(bias: bool) -> None:
    by_peft, fused = adapted_pair(bias=bias)
    for expected, got in zip(values_and_gradients(by_peft), values_and_gradients(fused), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    layer(fused).scaling["default"] *= 1.1  # negative control
    assert not torch.allclose(values_and_gradients(fused)[0], values_and_gradients(by_peft)[0])


def test_gradients_by_finite_differences() -> None:
    _, fused = adapted_pair(bias=True)
    fused.double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    adapter = [layer(fused).lora_A["default"].weight, layer(fused).lora_B["default"].weight]
    assert torch.autograd.gradcheck(lambda *inputs: fused(inputs[0]), (x, *adapter))


def test_a_bfloat16_base_keeps_a_float32_adapter() -> None:
    by_peft, fused = adapted_pair()
    for model in (by_peft, fused):
        layer(model).base_layer.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, got = (values_and_gradients(model, torch.bfloat16) for model in (by_peft, fused))
    assert [tensor.dtype for tensor in got] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other.float(), one.float(), rtol=0.03, atol=0.1)


def test_without_gradients_for_the_input_the_adapter_still_learns() -> None:
    by_peft, fused = adapted_pair()
    for model in (by_peft, fused):
        model(torch.ones(2, 6)).sum().backward()
    expected, got = (layer(model).lora_A["default"].weight.grad for model in (by_peft, fused))
    torch.testing.assert_close(got, expected)


def test_switched_off_the_layer_is_its_base() -> None:
    _, fused = adapted_pair()
    x = torch.ones(2, 6)
    with fused.disable_adapter():
        assert torch.equal(fused(x), layer(fused).base_layer(x))
    assert not torch.equal(fused(x), layer(fused).base_layer(x))


def test_dropout_is_left_to_peft() -> None:
    by_peft, fused = adapted_pair(lora_dropout=0.5)
    outputs = []
    for model in (by_peft.train(), fused.train()):
        torch.manual_seed(1)
        outputs.append(model(torch.ones(2, 6)))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[1], fused.eval()(torch.ones(2, 6)))


def test_other_adapters_are_not_touched() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=3, target_modules=["0"], use_dora=True))
    nn.init.normal_(layer(model).lora_B["default"].weight)
    expected = model(torch.ones(2, 6))
    fuse_adapters(model)
    assert torch.equal(model(torch.ones(2, 6)), expected)

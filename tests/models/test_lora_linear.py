"""The fused LoRA layer against peft's own: values, gradients, and the cases that it leaves to peft."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from posttrain.models import lora_linear
from posttrain.models.frozen import keep_stored_weights
from posttrain.models.lora_linear import FusedLoraLinear, fuse_adapters, project


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


class Heads(nn.Module):
    """Three layers of one input, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(6, 2, bias=False), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor, *, together: bool) -> tuple[Tensor, ...]:
        layers = self.first, self.second, self.third
        return project(x, *layers) if together else tuple(layer(x) for layer in layers)


def heads(**options: object) -> PeftModel:
    """Return the three layers with adapters of different ranks."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=["first", "second", "third"], rank_pattern={"second": 1}, **options
    )  # type: ignore[arg-type]
    model = get_peft_model(Heads(), config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    fuse_adapters(model)
    return model


def outputs_and_gradients(model: PeftModel, *, together: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    x = torch.linspace(-1, 1, 2 * 4 * 6, dtype=dtype).view(2, 4, 6).requires_grad_()
    outputs = model(x, together=together)
    model.zero_grad()
    sum((out * torch.arange(out.shape[-1])).sum() for out in outputs).backward()  # type: ignore[union-attr]
    return [*outputs, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]  # type: ignore[list-item]


@pytest.mark.parametrize("narrow", [False, True])
def test_layers_of_one_input_compute_together_what_they_do_alone(narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = heads()
    if narrow:
        keep_stored_weights(model.get_base_model().to(torch.bfloat16).float(), torch.float32)
    alone = outputs_and_gradients(model, together=False)
    calls = []
    apply = lora_linear._LoraProducts.apply
    monkeypatch.setattr(lora_linear._LoraProducts, "apply", lambda *args: calls.append(len(args)) or apply(*args))
    together = outputs_and_gradients(model, together=True)
    assert calls == [2 + 3 * 2]
    assert len(together) == len(alone) == 3 + 1 + 6
    for expected, got in zip(alone, together, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_layers_together_by_finite_differences() -> None:
    model = heads().double()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: model(inputs[0], together=True), (x, *weights))


def test_an_output_that_nobody_uses_has_no_part_in_the_gradient() -> None:
    model = heads()
    model(torch.ones(2, 6), together=True)[1].sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name, gradient in gradients.items() if gradient.any()} == {"second"}


@pytest.mark.parametrize("case", ["dropout", "switched off", "a plain layer"])
def test_layers_that_do_not_fit_together_compute_alone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = heads(lora_dropout=0.5 if case == "dropout" else 0.0)
    own = model.get_base_model()
    if case == "a plain layer":
        own.third = nn.Linear(6, 5)
    sizes = []
    apply = lora_linear._LoraProducts.apply
    monkeypatch.setattr(lora_linear._LoraProducts, "apply", lambda *args: sizes.append(len(args)) or apply(*args))
    results = []
    for together in (False, True):
        torch.manual_seed(1)
        if case == "switched off":
            with model.disable_adapter():
                results.append(model(torch.ones(2, 6), together=together))
        else:
            results.append(model(torch.ones(2, 6), together=together))
    for expected, got in zip(*results, strict=True):
        assert torch.equal(got, expected)
    assert set(sizes) <= {4}

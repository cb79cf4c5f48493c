"""The products of LoRA by the compiled kernels against float64, forward and backward."""

import pytest
import torch
from torch import Tensor

from posttrain.kernels.operations import Kernels

SCALING = 1.7
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-6}  # of the largest entry


class Case:
    """Random inputs of a layer, in the kernels' dtype, and what it is to compute, in float64."""

    def __init__(self, kernels: Kernels, rows: int, inputs: int, outputs: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.x, self.out, self.grad, self.grad_x = (
            normal(rows, size).to(kernels.dtype) for size in (inputs, outputs, outputs, inputs)
        )
        self.a, self.b = normal(rank, inputs), normal(outputs, rank)
        x, a, b = (each.double().requires_grad_() for each in (self.x, self.a, self.b))
        self.inner = x @ a.T
        expected = self.out.double() + SCALING * (self.inner @ b.T)
        expected.backward(self.grad.double())
        assert x.grad is not None
        self.expected = [expected, x.grad + self.grad_x.double(), a.grad, b.grad]

    def computed(self, kernels: Kernels) -> list[Tensor]:
        out, grad_x = self.out.clone(), self.grad_x.clone()
        inner = kernels.add_lora(out, self.x, self.a, self.b, SCALING)
        return [out, grad_x, *kernels.lora_backward(self.grad, self.x, inner, self.a, self.b, SCALING, grad_x)]


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 70, 257, 600])
@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(64, 96, 16), (48, 16, 16), (16, 80, 48), (96, 64, 32)])
def test_values_and_gradients(kernels: Kernels, rows: int, inputs: int, outputs: int, rank: int) -> None:
    case = Case(kernels, rows, inputs, outputs, rank)
    for got, wanted in zip(case.computed(kernels), case.expected, strict=True):
        assert wanted is not None
        assert (got.double() - wanted).abs().max() <= TOLERANCES[kernels.dtype] * wanted.abs().max()


def test_the_input_may_need_no_gradient(kernels: Kernels) -> None:
    case = Case(kernels, 40, 64, 96, 16)
    inner = kernels.add_lora(case.out.clone(), case.x, case.a, case.b, SCALING)
    grads = kernels.lora_backward(case.grad, case.x, inner, case.a, case.b, SCALING, None)
    assert all(map(torch.equal, grads, case.computed(kernels)[2:]))


def test_threads_change_nothing(kernels: Kernels) -> None:
    case, before, found = Case(kernels, 300, 96, 80, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(case.computed(kernels))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_other_sizes_are_refused(kernels: Kernels) -> None:
    case = Case(kernels, 4, 16, 16, 8)
    with pytest.raises(AssertionError, match="rank 8"):
        case.computed(kernels)

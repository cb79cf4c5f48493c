"""Joined linear layers: who is joined, that nothing else changes, and that calls in another way are noticed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from posttrain.engines.products import JoinedLinear, join_linears
from posttrain.models.devices import multiplies_bfloat16_fast


class Block(nn.Module):
    """Two layers on the input, one on their sum, one that is called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32, bias=False), nn.Linear(64, 32)
        self.after, self.twice, self.never = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.after(torch.tanh(self.first(x) * self.second(x)))
        return self.twice(self.twice(hidden))


def joined(dtype: torch.dtype = torch.float32) -> tuple[Block, Block]:
    torch.manual_seed(0)
    block = Block().to(dtype).requires_grad_(False)
    copied = copy.deepcopy(block)
    products = join_linears(copied, lambda: copied(torch.ones(1, 64, dtype=dtype)))
    assert [list(product.names) for product in products] == [["first", "second"], ["after"]]
    assert type(copied.twice) is type(copied.never) is nn.Linear
    return block, copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_joined_layers_compute_the_same(dtype: torch.dtype, rows: int) -> None:
    block, copied = joined(dtype)
    x = torch.randn(2, rows, 64).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(copied(x), block(x), rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not multiplies_bfloat16_fast(torch.device("cpu")), reason="no bfloat16 instructions")
def test_bfloat16_weights_are_packed_where_the_cpu_multiplies_them() -> None:
    _, copied = joined(torch.bfloat16)
    assert isinstance(copied.first, JoinedLinear)
    assert copied.first.product.packs
    _, copied = joined(torch.float32)
    assert not copied.first.product.packs


def test_different_inputs_are_noticed() -> None:
    _, copied = joined()
    copied.first(torch.ones(1, 64))
    with pytest.raises(AssertionError, match="first, second were joined"):
        copied.second(torch.ones(1, 64))

"""Products in pieces: the same numbers, for the shapes that leave a thread idle and for no others."""

import pytest
import torch
from torch import Tensor

from posttrain.models import matmul as module
from posttrain.models.matmul import add_matmul, matmul


@pytest.fixture(autouse=True)
def two_threads_with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_two_threads_with_tiles", lambda: True)


def factors(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    a, b, bias = torch.randn(rows, 96), torch.randn(columns, 96).T, torch.randn(columns)
    return a.to(dtype), b.to(dtype), bias.to(dtype)


def widths(a: Tensor, b: Tensor) -> list[int]:
    return [b[:, piece].shape[1] for piece in module._pieces(a, b)]


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(49, 64, [21, 21, 22]), (64, 64, [21, 21, 22]), (90, 64, [32, 32]), (143, 64, [32, 32]), (600, 576, [192] * 3)],
)
def test_pieces_are_shared_by_two_threads_and_cover_all_columns(rows: int, columns: int, expected: list[int]) -> None:
    a, b, _ = factors(rows, columns)
    assert widths(a, b) == expected
    assert all(rows >= module.MOST_ROWS * (width - 1) for width in expected)


@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (144, 64), (1200, 1200)])
def test_other_shapes_are_one_product(rows: int, columns: int) -> None:
    a, b, _ = factors(rows, columns)
    assert widths(a, b) == [columns]


def test_other_dtypes_and_machines_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widths(*factors(64, 64, torch.float32)[:2]) == [64]
    monkeypatch.setattr(module, "_has_two_threads_with_tiles", lambda: False)
    assert widths(*factors(64, 64)[:2]) == [64]


@pytest.mark.parametrize("rows", [20, 64, 100, 400])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_exact_sums_rounded_once(rows: int, transposed: bool) -> None:
    a, b, bias = factors(rows, 64)
    b = b.contiguous() if transposed else b
    exact = a.double() @ b.double()
    torch.testing.assert_close(matmul(a, b).double(), exact, rtol=0.005, atol=0.01)
    torch.testing.assert_close(matmul(a, b, bias).double(), exact + bias.double(), rtol=0.005, atol=0.01)
    total = torch.ones(rows, 64, dtype=torch.bfloat16)
    add_matmul(total, a, b)
    torch.testing.assert_close(total.double(), exact + 1, rtol=0.005, atol=0.01)

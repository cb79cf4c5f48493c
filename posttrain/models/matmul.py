"""Matrix products of torch, in the pieces that keep every core at work.

Floor 1: pure tensors, without gradient. With AMX, oneDNN computes some products of bfloat16 on one of two threads:
those with fewer than about 1,100 columns and 0.75 to 2.25 times as many rows, as most of a small model's have (torch
2.13; of 1,080 x 1,536 by 1,536 x 576, for instance). Of fewer columns at a time both threads compute a part: `python -m
benchmarks.kernels` has them side by side.
"""

import functools
import math

import torch
from torch import Tensor

FEWEST_ROWS, MOST_ROWS = 0.75, 2.25  # as multiples of the columns
MOST_COLUMNS = 1152


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `a @ b + bias`, `(M, N)`, of a `(M, K)`, b `(K, N)` and bias `(N,)`."""
    pieces = _pieces(a, b)
    if len(pieces) == 1:
        return a @ b if bias is None else torch.addmm(bias, a, b)
    out = a.new_empty(len(a), b.shape[1])
    for piece in pieces:
        if bias is None:
            torch.mm(a, b[:, piece], out=out[:, piece])
        else:
            torch.addmm(bias[piece], a, b[:, piece], out=out[:, piece])
    return out


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add `a @ b`, of a `(M, K)` and b `(K, N)`, to `total` `(M, N)`."""
    for piece in _pieces(a, b):
        total[:, piece].addmm_(a, b[:, piece])


def _pieces(a: Tensor, b: Tensor) -> list[slice]:
    """Return which columns of b to compute at a time."""
    rows, columns = len(a), b.shape[1]
    alone = columns < MOST_COLUMNS and FEWEST_ROWS * columns < rows < MOST_ROWS * columns
    if not (alone and a.dtype == torch.bfloat16 and a.device.type == "cpu" and _has_two_threads_with_tiles()):
        return [slice(None)]
    count = math.ceil(MOST_ROWS * columns / rows)
    return [slice(columns * place // count, columns * (place + 1) // count) for place in range(count)]


def _has_two_threads_with_tiles() -> bool:
    return torch.get_num_threads() == 2 and _has_tiles()


@functools.cache
def _has_tiles() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported())

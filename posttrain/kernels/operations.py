"""The compiled kernels on tensors: each says what it computes, and checks what it is given.

Floor 1: CPU tensors of float32 or bfloat16. Sums are in float32, and a result is rounded once.
"""

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.kernels.library import load_library

logger = logging.getLogger(__name__)

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 16  # sizes of heads and of SwiGLU must be multiples
MAX_HEAD_SIZE = 256


class DecodeRows(NamedTuple):
    """Where B decoding rows stand; int64 tensors `(B,)`, contiguous."""

    order: Tensor  # in which to compute them: those of one prompt together
    slots: Tensor  # of their prompts
    prompt_lengths: Tensor
    own_positions: Tensor  # of their new tokens in their own caches


@functools.cache
def compiled_kernels(device: torch.device, dtype: torch.dtype) -> "Kernels | None":
    """Return the kernels for tensors of this kind; None where there are none, or no compiler."""
    if device.type != "cpu" or dtype not in SUFFIXES:
        return None
    library = load_library()
    return None if library is None else Kernels(library, dtype)


def serves(*, head_size: int, intermediate_size: int) -> bool:
    """Say whether the kernels can compute a model with these sizes."""
    return head_size % LANES == intermediate_size % LANES == 0 and head_size <= MAX_HEAD_SIZE


class Kernels:
    """The functions of the library for one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        suffix = SUFFIXES[dtype]
        self._rms_norm = _function(library, f"rms_norm_{suffix}", "pppnnf")
        self._swiglu = _function(library, f"swiglu_{suffix}", "ppnn")
        self._draw = _function(library, f"draw_{suffix}", "ppppnnf")
        self._decode_attention = _function(library, f"decode_attention_{suffix}", "p" * 14 + "n" * 7 + "ff")

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension of `(T, E)`."""
        out = torch.empty_like(x)
        self._rms_norm(self._at(x), self._at(weight), self._at(out), x.shape[0], x.shape[1], epsilon)
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """Return `silu(gate) * up`, `(T, I)`, of gate and up side by side, `(T, 2 I)`."""
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        self._swiglu(self._at(gate_up), self._at(out), *out.shape)
        return out

    def draw(self, logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Draw from `softmax(logits / temperature)` of each row of `(B, V)` where its running sum passes its uniform.

        `uniforms` `(B,)` are in [0, 1). Returns ids `(B,)` and their log-probs `(B,)` in float32; an id of
        probability 0 is never drawn, and NaN logits give NaN.
        """
        uniforms = uniforms.to(torch.float64).contiguous()
        ids = torch.empty(len(logits), dtype=torch.long)
        logprobs = torch.empty(len(logits), dtype=torch.float32)
        addresses = (self._at(logits), uniforms.data_ptr(), ids.data_ptr(), logprobs.data_ptr())
        self._draw(*addresses, *logits.shape, 1.0 / temperature)
        return ids, logprobs

    def decode_attention(
        self,
        states: Tensor,
        angles: tuple[Tensor, Tensor],
        norms: tuple[Tensor, Tensor, float] | None,
        prompts: tuple[Tensor, Tensor],
        completions: tuple[Tensor, Tensor],
        rows: DecodeRows,
        *,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attend from one new token of each of B rows to its prompt and its own past; return `(B, H * D)`.

        `states` `(B, H + 2 Hkv, D)` are the heads of query, key and value; query and key are normalised by `norms`, if
        given (weights `(D,)` and epsilon), and turned by `angles`, cosines and sines `(B, D)`. The new key and value
        are written to `completions`. Both caches are keys and values, `(slots, Hkv, room, D)`.
        """
        batch, all_heads, size = states.shape
        kv_heads, prompt_room = prompts[0].shape[1:3]
        own_room = completions[0].shape[2]
        heads = all_heads - 2 * kv_heads
        query_norm, key_norm, epsilon = norms or (None, None, 0.0)
        out = states.new_empty(batch, heads * size)
        self._decode_attention(
            *map(self._at, (states, *angles)),
            query_norm if query_norm is None else self._at(query_norm),
            key_norm if key_norm is None else self._at(key_norm),
            *map(self._at, (*prompts, *completions)),
            *(indices.data_ptr() for indices in rows),
            self._at(out),
            *(batch, heads, kv_heads, size, prompt_room, own_room, window or 0),
            *(scaling, epsilon),
        )
        return out

    def _at(self, tensor: Tensor) -> int:
        assert tensor.dtype == self.dtype, f"expected {self.dtype}, and got {tensor.dtype}"
        assert tensor.is_contiguous(), f"expected a contiguous tensor, and got strides {tensor.stride()}"
        return tensor.data_ptr()


def _function(library: ctypes.CDLL, name: str, arguments: str) -> Callable[..., Any]:
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
    function = library[name]
    function.argtypes, function.restype = [kinds[kind] for kind in arguments], None
    return function

"""The compiled kernels on tensors: each says what it computes, and checks what it is given.

Floor 0: CPU tensors of float32 or bfloat16. Sums are in float32, and a result is rounded once.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.kernels.library import load_library

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 16  # sizes of heads, of SwiGLU and of linear layers must be multiples
MAX_HEAD_SIZE = 256
COLUMNS = 2 * LANES  # of which heads are multiples in training, and the ranks that adapters are padded to


class Part(Structure):
    """One of the linear layers that read the same input."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "outer")),
        *((name, c_int64) for name in ("outputs", "rank", "first")),
    ]


class Linear(Structure):
    """Linear layers that read the same input, side by side; what it points to is kept alive beside it."""

    _fields_ = [
        *((name, c_void_p) for name in ("parts", "bias", "inner")),
        *((name, c_int64) for name in ("inputs", "outputs", "ranks", "narrow")),
    ]
    kept: tuple[object, ...] = ()


class Step(Structure):
    """One new token of each of B sequences; see `decode_step`."""

    _fields_ = [
        ("rows", c_int64),
        *((name, c_void_p) for name in ("order", "slots", "prompt_lengths", "own_positions", "cos", "sin")),
        ("prompt_room", c_int64),
        ("own_room", c_int64),
    ]
    tensors: tuple[Tensor, ...] = ()


class Attention(Structure):
    """The attention of a decoder layer, and its caches: keys and values `(slots, Hkv, room, D)`."""

    _fields_ = [
        *((name, c_int64) for name in ("heads", "kv_heads", "size")),
        *((name, c_float) for name in ("scaling", "epsilon")),
        *((name, c_void_p) for name in ("query_norm", "key_norm")),
        ("window", c_int64),
        *((name, c_void_p) for name in ("prompt_keys", "prompt_values", "own_keys", "own_values")),
    ]

    def use(self, prompts: tuple[Tensor, Tensor], completions: tuple[Tensor, Tensor]) -> None:
        """Point to the caches of prompts and of completions."""
        self.prompt_keys, self.prompt_values = (tensor.data_ptr() for tensor in prompts)
        self.own_keys, self.own_values = (tensor.data_ptr() for tensor in completions)


class Trees(Structure):
    """Prompt trees in a packed sequence, and the attention within them."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "heads", "kv_heads", "size", "count")),
        *((name, c_void_p) for name in ("prompts", "branches", "first_branch")),
        ("window", c_int64),
        ("scaling", c_float),
    ]


class TreeSpans(NamedTuple):
    """Where P trees lie in a packed sequence, which they cover; int64 tensors, contiguous."""

    prompts: Tensor  # (P, 2): start and length
    branches: Tensor  # (B, 2), tree by tree
    first_branch: Tensor  # (P + 1,): the branches of tree p are those from first_branch[p] to first_branch[p + 1]


class Layer(Structure):
    """A decoder layer of Llama's form."""

    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("epsilon", c_float),
        *((name, Linear) for name in ("states", "output", "gate_up", "down")),
        ("attention", Attention),
    ]


class DecodeRows(NamedTuple):
    """Where B decoding rows stand; int64 tensors `(B,)`, contiguous."""

    order: Tensor  # in which to compute them: those of one prompt together
    slots: Tensor  # of their prompts
    prompt_lengths: Tensor
    own_positions: Tensor  # of their new tokens in their own caches


def decode_step(rows: DecodeRows, angles: tuple[Tensor, Tensor], prompt_room: int, own_room: int) -> Step:
    """Return a step of B rows; `angles` are the cosines and sines `(B, D)` of their positions, in the kernels' dtype.

    A prompt's slot has room for `prompt_room` tokens, and a row's own for `own_room`.
    """
    tensors = (*rows, *angles)
    assert all(tensor.is_contiguous() for tensor in tensors)
    step = Step(len(rows.order), *(tensor.data_ptr() for tensor in tensors), prompt_room, own_room)
    step.tensors = tensors
    return step


@functools.cache
def compiled_kernels(device: torch.device, dtype: torch.dtype) -> "Kernels | None":
    """Return the kernels for tensors of this kind; None where there are none, or no compiler."""
    if device.type != "cpu" or dtype not in SUFFIXES:
        return None
    library = load_library()
    return None if library is None else Kernels(library, dtype)


class Kernels:
    """The functions of the library for one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        functions: dict[str, list[Any]] = {
            "linear": [c_void_p, c_int64, POINTER(Linear), c_void_p, c_void_p],
            "decode_layers": [POINTER(Step), POINTER(Layer), c_int64, c_void_p, c_float, c_void_p],
            "attend": [POINTER(Step), POINTER(Attention), c_void_p, c_void_p],
            "attend_trees": [POINTER(Trees)] + [c_void_p] * 5,
            "attend_trees_backward": [POINTER(Trees)] + [c_void_p] * 10,
            "rms_norm": [c_void_p] * 3 + [c_int64, c_int64, c_float],
            "rms_norm_backward": [c_void_p] * 4 + [c_int64, c_int64, c_float],
            "swiglu": [c_void_p] * 3 + [c_int64] * 3,
            "swiglu_backward": [c_void_p] * 5 + [c_int64] * 2,
            "rotate": [c_void_p] * 4 + [c_int64] * 4,
            "score_targets": [c_void_p] * 4 + [c_int64, c_int64, c_float, c_int64],
            "draw": [c_void_p] * 4 + [c_int64, c_int64, c_float],
        }
        self._call = {name: _function(library, f"{name}_{SUFFIXES[dtype]}", kinds) for name, kinds in functions.items()}

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Return `x / sqrt(mean(x^2) + epsilon) * weight` over the last dimension of `(..., E)`."""
        assert weight.shape == x.shape[-1:], f"expected {x.shape[-1]} weights, and got {tuple(weight.shape)}"
        out = torch.empty_like(x)
        self._call["rms_norm"](self.at(x), self.at(weight), self.at(out), *_rows(x), epsilon)
        return out

    def rms_norm_backward(self, x: Tensor, weight: Tensor, grad_out: Tensor, epsilon: float) -> Tensor:
        """Return the gradient `(..., E)` of `rms_norm` for x, from that of its result; E is a multiple of LANES."""
        assert x.shape == grad_out.shape, f"expected a gradient {tuple(x.shape)}, and got {tuple(grad_out.shape)}"
        assert x.shape[-1] % LANES == 0, f"expected rows of a multiple of {LANES}, and got {x.shape[-1]}"
        grad_x = torch.empty_like(x)
        addresses = map(self.at, (x, weight, grad_out, grad_x))
        self._call["rms_norm_backward"](*addresses, *_rows(x), epsilon)
        return grad_x

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return `silu(gate) * up`, `(..., I)`; I is a multiple of LANES."""
        assert gate.shape == up.shape, f"expected two equal shapes, and got {tuple(gate.shape)} and {tuple(up.shape)}"
        assert gate.shape[-1] % LANES == 0, f"expected rows of a multiple of {LANES}, and got {gate.shape[-1]}"
        out = torch.empty_like(gate)
        self._call["swiglu"](*map(self.at, (gate, up, out)), *_rows(gate), gate.shape[-1])
        return out

    def swiglu_of_joined(self, gate_up: Tensor) -> Tensor:
        """Return `swiglu(gate, up)`, `(T, I)`, of gate and up side by side, `(T, 2 I)`."""
        rows, stride = gate_up.shape
        assert stride % (2 * LANES) == 0, f"expected rows of a multiple of {2 * LANES}, and got {stride}"
        out = gate_up.new_empty(rows, stride // 2)
        gate = self.at(gate_up)
        up = gate + stride // 2 * gate_up.element_size()
        self._call["swiglu"](gate, up, self.at(out), *out.shape, stride)
        return out

    def swiglu_backward(self, gate: Tensor, up: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of `swiglu` for gate and for up, from that of its result."""
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        self._call["swiglu_backward"](*map(self.at, (gate, up, grad_out, grad_gate, grad_up)), *_rows(gate))
        return grad_gate, grad_up

    def rotate(self, states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
        """Return heads `(..., H, D)` turned by the angles whose cosines and sines are `(..., D)`, or `back` by them.

        D is a multiple of COLUMNS. The halves a and b of a head become a cos - b sin and b cos + a sin; where both
        halves have the same angles, as rotary embeddings do, turning back is the gradient too.
        """
        heads, size = states.shape[-2:]
        assert size % COLUMNS == 0, f"expected heads of a multiple of {COLUMNS}, and got {size}"
        expected = (*states.shape[:-2], size)
        assert cos.shape == sin.shape == expected, f"expected angles {expected}, and got {tuple(cos.shape)}"
        out = torch.empty_like(states)
        self._call["rotate"](*map(self.at, (states, cos, sin, out)), cos.numel() // size, heads, size, back)
        return out

    def score_targets(
        self, products: Tensor, targets: Tensor, *, factor: float, gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the log-prob of each target and the entropy in nats, `(n,)` in float32, of logits `factor * products`.

        `products` are `(n, V)`, V a multiple of LANES; with `gradient` they become the gradient of `-log p(target)` for
        themselves.
        """
        assert products.shape[1] % LANES == 0, f"expected a multiple of {LANES} logits, and got {products.shape[1]}"
        logprobs, entropies = torch.empty(len(products)), torch.empty(len(products))
        targets = targets.to(torch.long).contiguous()
        addresses = (self.at(products), targets.data_ptr(), logprobs.data_ptr(), entropies.data_ptr())
        self._call["score_targets"](*addresses, *products.shape, factor, gradient)
        return logprobs, entropies

    def draw(self, logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Draw from `softmax(logits / temperature)` of each row of `(B, V)` where its running sum passes its uniform.

        `uniforms` `(B,)` are in [0, 1). Returns ids `(B,)` and their log-probs `(B,)` in float32; an id of
        probability 0 is never drawn, and NaN logits give NaN.
        """
        uniforms = uniforms.to(torch.float64).contiguous()
        ids = torch.empty(len(logits), dtype=torch.long)
        logprobs = torch.empty(len(logits), dtype=torch.float32)
        addresses = (self.at(logits), uniforms.data_ptr(), ids.data_ptr(), logprobs.data_ptr())
        self._call["draw"](*addresses, *logits.shape, 1.0 / temperature)
        return ids, logprobs

    def join(
        self, weights: Sequence[Tensor], bias: Tensor | None, adapters: Sequence[tuple[Tensor, Tensor] | None]
    ) -> Linear:
        """Return layers with weights `(N_i, K)` as one of all their outputs, for `linear`; bias is `(N_1 + ...)`.

        An adapter, `(N_i, r)` and `(r, K)`, adds their product to a weight. Weights are read where they are, all of the
        kernels' dtype, or of bfloat16, which products in float32 widen; adapters are copied, and rounded to the
        kernels' dtype. N_i and K are multiples of LANES.
        """
        inputs, dtype = weights[0].shape[1], weights[0].dtype
        assert dtype in (self.dtype, torch.bfloat16), f"expected {self.dtype}, and got {dtype}"
        outputs = sum(map(len, weights))
        assert bias is None or bias.shape == (outputs,), f"expected {outputs} biases, and got {tuple(bias.shape)}"
        parts = (Part * len(weights))()
        inners: list[Tensor] = []
        outers: list[Tensor] = []
        for part, weight, adapter in zip(parts, weights, adapters, strict=True):
            assert weight.dtype == dtype, f"expected weights of {dtype}, and got {weight.dtype}"
            assert weight.shape[1] == inputs, f"expected {inputs} inputs, and got {weight.shape[1]}"
            assert len(weight) % LANES == inputs % LANES == 0, f"expected multiples of {LANES}: {tuple(weight.shape)}"
            assert weight.is_contiguous(), f"expected a contiguous weight, and got strides {weight.stride()}"
            part.weight, part.outputs, part.first = weight.data_ptr(), len(weight), sum(map(len, inners))
            if adapter is not None:
                outer, inner = (factor.to(self.dtype) for factor in adapter)
                inners.append(F.pad(inner, (0, 0, 0, -len(inner) % LANES)))
                outers.append(F.pad(outer, (0, -len(inner) % COLUMNS)).contiguous())
                part.outer, part.rank = outers[-1].data_ptr(), outers[-1].shape[1]
        all_inner = _by_halves(torch.cat(inners)) if inners else None
        addresses = (None if tensor is None else self.at(tensor) for tensor in (bias, all_inner))
        ranks = sum(map(len, inners))
        linear = Linear(ctypes.addressof(parts), *addresses, inputs, outputs, ranks, dtype != self.dtype)
        linear.kept = (parts, bias, all_inner, *weights, *outers)
        return linear

    def linear(self, x: Tensor, layer: Linear, other: Tensor | None = None) -> Tensor:
        """Return `x @ weight.T + bias + other` with what adapters add: `(..., K)` to `(..., N)`, as `other`."""
        assert x.shape[-1] == layer.inputs, f"expected {layer.inputs} inputs, and got {x.shape[-1]}"
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], layer.outputs)
        address = None if other is None else self.at(other)
        self._call["linear"](self.at(x), x.numel() // layer.inputs, byref(layer), address, self.at(out))
        return out

    def attend(self, step: Step, layer: Attention, states: Tensor) -> Tensor:
        """Attend from one new token of each row to its prompt and its own past; return `(B, H * D)`.

        `states` `(B, H + 2 Hkv, D)` are the heads of query, key and value; query and key are normalised, if the layer
        does that, and turned by the step's angles. The new key and value are written to the row's own cache.
        """
        out = states.new_empty(len(states), layer.heads * layer.size)
        self._call["attend"](byref(step), byref(layer), self.at(states), self.at(out))
        return out

    def attend_trees(
        self, spans: TreeSpans, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Attend within prompt trees: a token sees its prompt and its own past, of these `window` tokens at most.

        query `(T, H, D)`, key and value `(T, Hkv, D)`, D a multiple of COLUMNS. Returns `(T, H, D)`, and for each token
        and head the logarithm of its softmax's sum, `(T, H)` in float32, which the backward pass needs.
        """
        trees = _trees(spans, query, key, value, scaling, window)
        out, logsums = torch.empty_like(query), torch.empty(query.shape[:2])
        self._call["attend_trees"](byref(trees), *map(self.at, (query, key, value, out)), logsums.data_ptr())
        return out, logsums

    def attend_trees_backward(
        self,
        spans: TreeSpans,
        states: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsums: Tensor,
        grad_out: Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `attend_trees` for its states query, key and value, from that of its result."""
        trees = _trees(spans, *states, scaling, window)
        query, key, value = map(torch.empty_like, states)
        tokens, heads, size = out.shape
        parts = torch.empty(2, heads, tokens, size)  # of keys and values, by query head
        addresses = (*map(self.at, (*states, out)), logsums.data_ptr(), *map(self.at, (grad_out, query, key, value)))
        self._call["attend_trees_backward"](byref(trees), *addresses, parts.data_ptr())
        return query, key, value

    def decode_layers(
        self, step: Step, layers: "ctypes.Array[Layer]", norm: Tensor, epsilon: float, hidden: Tensor
    ) -> None:
        """Compute the hidden states `(B, E)` after all layers and the `rms_norm` behind them, in place."""
        self._call["decode_layers"](byref(step), layers, len(layers), self.at(norm), epsilon, self.at(hidden))

    def at(self, tensor: Tensor) -> int:
        """Return the address of a contiguous tensor of the kernels' dtype."""
        assert tensor.dtype == self.dtype, f"expected {self.dtype}, and got {tensor.dtype}"
        assert tensor.is_contiguous(), f"expected a contiguous tensor, and got strides {tensor.stride()}"
        return tensor.data_ptr()


def _trees(spans: TreeSpans, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Trees:
    tokens, heads, size = query.shape
    kv_heads = key.shape[1]
    assert key.shape == value.shape == (tokens, kv_heads, size), f"got keys {tuple(key.shape)}, {tuple(value.shape)}"
    assert heads % kv_heads == size % COLUMNS == 0, f"got {heads} heads on {kv_heads} of {size}"
    assert all(tensor.is_contiguous() for tensor in spans)
    addresses = (tensor.data_ptr() for tensor in spans)
    seen = tokens if window is None else window
    return Trees(tokens, heads, kv_heads, size, len(spans.prompts), *addresses, seen, scaling)


def _by_halves(inner: Tensor) -> Tensor:
    """Return the first half of the inputs of all rows of `(R, K)`, then the second, which threads compute apart."""
    half = inner.shape[1] // (2 * COLUMNS) * COLUMNS
    return torch.cat([inner[:, :half].flatten(), inner[:, half:].flatten()])


def _rows(x: Tensor) -> tuple[int, int]:
    """Return the numbers of rows and of columns of `(..., E)`."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _function(library: ctypes.CDLL, name: str, arguments: list[Any]) -> Callable[..., Any]:
    function = library[name]
    function.argtypes, function.restype = arguments, None
    return function

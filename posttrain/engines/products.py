"""The matrix products of an inference copy: linear layers that read the same input are joined into one.

Floor 2: knows torch modules, and no architecture by name: which layers share an input is seen in one forward. Decoding
streams every weight once a step, so fewer and larger products are most of its speed. Compiled kernels read frozen
weights where the policy has them, with adapters beside; torch's products read copies, with adapters folded in, but for
weights that are narrower than the products' dtype, which an adapter is never rounded to.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.kernels.operations import LANES, Kernels, Linear, compiled_kernels
from posttrain.models.attention import RowsLayout
from posttrain.models.devices import multiplies_bfloat16_fast
from posttrain.models.frozen import FrozenLinear, is_narrower, multiply, product_dtype
from posttrain.models.lora import LowRank

PROBE = (11, 7, 5)  # taken modulo the vocabulary
PACKED_ROWS = 16  # rows that the packed layout is chosen for; it serves any number


class StoredLinear(Protocol):
    """A linear layer's weight and bias, laid out for the products of an inference copy."""

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return `x @ weight.T + bias + other`, `(..., K)` to `(..., N)`."""
        ...


class PlainLinear(NamedTuple):
    """As torch has it; a weight that is narrower than x is widened."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        product = multiply(x, self.weight, self.bias)
        return product if other is None else product.add_(other)


class OneDnnLinear(NamedTuple):
    """As oneDNN's kernels for bfloat16 want it: torch's own compiler uses the same operators."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        if other is None:
            return cast(Tensor, product(x, self.weight, self.bias, "none", [], ""))
        return cast(Tensor, product.binary(x, other, self.weight, self.bias, "add"))


class CompiledLinear(NamedTuple):
    """As our own kernels read it, adapters included."""

    kernels: Kernels
    linear: Linear

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.kernels.linear(x, self.linear, other)


class AdaptedLinear(NamedTuple):
    """A frozen layer with an adapter beside it, whose inner product comes first."""

    frozen: PlainLinear
    inner: Tensor  # (R, K)
    outer: Tensor  # (N, R)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.frozen(x, other).add_(x @ self.inner.T @ self.outer.T)


class LayerWeights(NamedTuple):
    """What a linear layer computes with."""

    weight: Tensor
    bias: Tensor | None = None
    added: LowRank | None = None


def joined_linear(layers: Sequence[LayerWeights], dtype: torch.dtype) -> StoredLinear:
    """Return linear layers with one input as a single layer, whose products are in `dtype`.

    Frozen weights are read where they are by compiled kernels, and where one is a product by itself; others are copies.
    """
    narrow = all(is_narrower(layer.weight.dtype, dtype) for layer in layers)
    stored = layers[0].weight.dtype if narrow else dtype
    bias = _joined_bias(layers, dtype)
    kernels = compiled_kernels(layers[0].weight.device, dtype)
    if kernels is not None and all(size % LANES == 0 for layer in layers for size in layer.weight.shape):
        weights = [_readable(layer.weight, stored) for layer in layers]
        adapters = [None if layer.added is None else (layer.added.outer, layer.added.inner) for layer in layers]
        return CompiledLinear(kernels, kernels.join(weights, bias, adapters))
    if narrow:
        plain = PlainLinear(_side_by_side([layer.weight for layer in layers]), bias)
        return plain if all(layer.added is None for layer in layers) else _with_adapters(plain, layers, dtype)
    weight = _side_by_side(
        [layer.weight if layer.added is None else layer.added.folded_into(layer.weight, dtype) for layer in layers]
    ).to(dtype)
    if _onednn_packs(weight):
        return OneDnnLinear(torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS), bias)
    return PlainLinear(weight, bias)


def _readable(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as kernels read it: its own memory, or a copy where that is trained or of another form."""
    return weight.detach().to(dtype, copy=weight.requires_grad).contiguous()


def _side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Return weights as one: a single frozen one as it is, others as a copy."""
    return weights[0] if len(weights) == 1 and not weights[0].requires_grad else torch.cat(list(weights))


def _joined_bias(layers: Sequence[LayerWeights], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    none = (layer.weight.new_zeros(len(layer.weight)) for layer in layers)
    biases = [zeros if layer.bias is None else layer.bias for layer, zeros in zip(layers, none, strict=True)]
    return torch.cat(biases).to(dtype)


def _onednn_packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and multiplies_bfloat16_fast(weight.device)
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class JoinedProduct:
    """The product of several linear layers with the same input, and where their outputs wait."""

    def __init__(self, names: Sequence[str], layers: Sequence[LayerWeights], dtype: torch.dtype) -> None:
        """Take the layers' names, in the order in which the model calls them, and their weights."""
        self.names, self.dtype = names, dtype
        self.sizes = [len(layer.weight) for layer in layers]  # of their outputs
        self.outputs: Sequence[Tensor] = ()  # of the layers, between the first one's call and the last one's
        self.input: Tensor | None = None
        self.set(layers)

    def set(self, layers: Sequence[LayerWeights]) -> None:
        """Compute with other weights from now on."""
        self.whole = joined_linear(layers, self.dtype)

    def output(self, place: int, x: Tensor) -> Tensor:
        """Return the output of the layer at `place`; the first one's call computes them all."""
        if place == 0:
            self.outputs, self.input = self.whole(x).split(list(self.sizes), dim=-1), x
        assert self.input is x, f"{', '.join(self.names)} were joined, and called with different inputs"
        output = self.outputs[place]
        if place == len(self.sizes) - 1:
            self.outputs, self.input = (), None
        return output


class JoinedLinear(nn.Module):
    """A linear layer whose product is computed together with others'."""

    def __init__(self, product: JoinedProduct, place: int) -> None:
        """Take the product, and which of its layers this one is."""
        super().__init__()
        self.product, self._place = product, place

    def forward(self, x: Tensor) -> Tensor:
        """Return this layer's output."""
        return self.product.output(self._place, x)


def join_linears(model: nn.Module, run: Callable[[], object], skip: Collection[str] = ()) -> list[JoinedProduct]:
    """Replace the model's linear layers by joined ones with the same weights, and return their products.

    `run` calls the model's forward once; layers that it does not call, or calls twice, or that `skip` names, stay.
    """
    products = []
    for names in _groups_by_input(model, run):
        names = [name for name in names if name not in skip]
        if not names:
            continue
        layers = [layer for layer in map(model.get_submodule, names) if isinstance(layer, nn.Linear)]
        weights = [LayerWeights(layer.weight, layer.bias) for layer in layers]
        product = JoinedProduct(names, weights, product_dtype(layers[0]))
        for place, name in enumerate(names):
            model.set_submodule(name, JoinedLinear(product, place))
        products.append(product)
    return products


def _with_adapters(frozen: PlainLinear, layers: Sequence[LayerWeights], dtype: torch.dtype) -> AdaptedLinear:
    """Return joined layers with their adapters as one, of the sum R of their ranks."""
    adapters = [layer.added for layer in layers if layer.added is not None]
    inner = torch.cat([added.inner for added in adapters]).to(dtype)  # (R, K)
    outers = (
        layer.weight.new_zeros(len(layer.weight), 0) if layer.added is None else layer.added.outer for layer in layers
    )
    return AdaptedLinear(frozen, inner, torch.block_diag(*outers).to(dtype))


def _groups_by_input(model: nn.Module, run: Callable[[], object]) -> list[list[str]]:
    """Return the names of the linear layers that `run` calls once, those with the same input together, in order."""
    calls: list[tuple[str, Tensor, int]] = []  # holds every input, so no two of them have the same id
    hooks = []
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, FrozenLinear):

            def note(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls.append((name, inputs[0], inputs[0]._version))

            hooks.append(module.register_forward_pre_hook(note))
    run()
    for hook in hooks:
        hook.remove()
    names = [name for name, _, _ in calls]
    groups: dict[tuple[int, int], list[str]] = {}
    for name, x, version in calls:
        if names.count(name) == 1:
            groups.setdefault((id(x), version), []).append(name)
    return list(groups.values())


def probe_logits(model: PreTrainedModel) -> Tensor:
    """Return the logits `(3, V)` in float32 of three tokens in a row, by a model whose attention is "posttrain"."""
    ids = torch.tensor([probe_ids(model)], device=model.device)
    positions = torch.arange(len(PROBE), device=model.device)[None]
    output = model(input_ids=ids, position_ids=positions, layout=RowsLayout(), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def probe_ids(model: PreTrainedModel) -> list[int]:
    """Return the ids of the tokens that a changed model is tried on."""
    return [token % model.config.get_text_config().vocab_size for token in PROBE]


def same_logits(logits: Tensor, others: Tensor) -> bool:
    """Say whether two results of `probe_logits` differ by no more than bfloat16's rounding in many layers."""
    return bool((logits - others).abs().max() <= 0.05 * max(1.0, float(others.abs().max())))

"""The matrix products of an inference copy: linear layers that read the same input are joined into one.

Floor 2: knows torch modules, and no architecture by name: which layers share an input is seen in one forward. Decoding
streams every weight once a step, so fewer and larger products, of weights that already lie as the CPU's kernel wants
them, are most of its speed. Weights that are narrower than the products' dtype stay so: adapters on them are products
beside theirs, on all others they are folded in.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.kernels.operations import LANES, Kernels, PackedLinear, compiled_kernels
from posttrain.models.attention import RowsLayout
from posttrain.models.devices import multiplies_bfloat16_fast
from posttrain.models.frozen import (
    FrozenEmbedding,
    FrozenLinear,
    is_narrower,
    keep_stored_weights,
    multiply,
    product_dtype,
)
from posttrain.models.logprobs import compute_dtype
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
    """As our own kernels read it."""

    kernels: Kernels
    packed: PackedLinear

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.kernels.linear(x, self.packed, other)


class AdaptedLinear(NamedTuple):
    """With an adapter beside it."""

    frozen: StoredLinear
    inner: StoredLinear
    outer: StoredLinear

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.outer(self.inner(x), self.frozen(x, other))


def stored_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> StoredLinear:
    """Return a copy of a linear layer with products in `dtype`, in the layout that is fastest where it lies."""
    kernels = compiled_kernels(weight.device, dtype)
    if kernels is not None and weight.shape[0] % LANES == weight.shape[1] % LANES == 0:
        return CompiledLinear(kernels, kernels.packed(weight, bias))
    if _onednn_packs(weight):
        return OneDnnLinear(torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS), bias)
    return PlainLinear(weight, bias)


def _onednn_packs(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and multiplies_bfloat16_fast(weight.device)
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class LayerWeights(NamedTuple):
    """What a linear layer computes with."""

    weight: Tensor
    bias: Tensor | None = None
    added: LowRank | None = None


class JoinedProduct:
    """The product of several linear layers with the same input, and where their outputs wait."""

    def __init__(self, names: Sequence[str], layers: Sequence[LayerWeights], dtype: torch.dtype) -> None:
        """Take the layers' names, in the order in which the model calls them, and copies of their weights."""
        self.names, self.dtype = names, dtype
        self.sizes = [len(layer.weight) for layer in layers]  # of their outputs
        self.outputs: Sequence[Tensor] = ()  # of the layers, between the first one's call and the last one's
        self.input: Tensor | None = None
        self.whole = self._frozen = _joined(layers, dtype)  # of all outputs, one after the other
        self._sources = list(map(_Source, _tensors(layers)))

    def set(self, layers: Sequence[LayerWeights]) -> None:
        """Take copies of other weights, of a single layer where its old ones lie; those that are frozen came before."""
        (first, *others), frozen = layers, self._frozen
        if not all(source.is_of(tensor) for source, tensor in zip(self._sources, _tensors(layers), strict=True)):
            alone = not others and first.bias is None
            if alone and isinstance(frozen, CompiledLinear) and frozen.packed.dtype == first.weight.dtype:
                frozen.kernels.repack(frozen.packed, first.weight)
            else:
                self._frozen = _joined(layers, self.dtype)
            self._sources = list(map(_Source, _tensors(layers)))
        self.whole = _with_adapters(self._frozen, layers, self.dtype)

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


class PackedEmbedding(nn.Module):
    """An embedding whose weight lies as the head that is tied to it wants it."""

    def __init__(self, head: JoinedProduct) -> None:
        """Take the head's product, which is `CompiledLinear`."""
        super().__init__()
        self._head = head

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors `(..., E)` of ids `(...)`."""
        stored = self._head.whole
        assert isinstance(stored, CompiledLinear)
        return stored.kernels.packed_rows(stored.packed, ids.flatten()).view(*ids.shape, -1)


class _Source:
    """Which tensor a copy was made of, and whether it still is what was copied; only frozen ones are remembered."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = None if tensor.requires_grad else weakref.ref(tensor), tensor._version

    def is_of(self, tensor: Tensor) -> bool:
        return self._tensor is not None and self._tensor() is tensor and self._version == tensor._version


def _tensors(layers: Sequence[LayerWeights]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias) if tensor is not None]


def _joined(layers: Sequence[LayerWeights], dtype: torch.dtype) -> StoredLinear:
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return stored_linear(weight, None, dtype)
    none = (weight.new_zeros(len(layer.weight)) for layer in layers)
    biases = [zeros if layer.bias is None else layer.bias for layer, zeros in zip(layers, none, strict=True)]
    return stored_linear(weight, torch.cat(biases).to(dtype), dtype)


def _with_adapters(frozen: StoredLinear, layers: Sequence[LayerWeights], dtype: torch.dtype) -> StoredLinear:
    """Return joined layers with their adapters as one: of rank R, the sum of theirs, which zeros fill up to LANES."""
    if all(layer.added is None for layer in layers):
        return frozen
    ranks = [0 if layer.added is None else len(layer.added.inner) for layer in layers]
    weight = layers[0].weight
    inner = weight.new_zeros(-(-sum(ranks) // LANES) * LANES, weight.shape[1], dtype=dtype)  # (R, K)
    outer = weight.new_zeros(sum(len(layer.weight) for layer in layers), len(inner), dtype=dtype)  # (N, R)
    rank = row = 0
    for layer, layer_rank in zip(layers, ranks, strict=True):
        size = len(layer.weight)
        if layer.added is not None:
            inner[rank : rank + layer_rank] = layer.added.inner
            outer[row : row + size, rank : rank + layer_rank] = layer.added.outer
        rank, row = rank + layer_rank, row + size
    return AdaptedLinear(frozen, stored_linear(inner, None, dtype), stored_linear(outer, None, dtype))


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


class InferenceWeights:
    """The weights of an inference copy, set by the names of the plain model even where they live in joined products."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._dtype = model, compute_dtype(model)
        self._expected = {name for name, _ in model.named_parameters()}  # a tied head comes as the embedding
        self._product_of: dict[str, JoinedProduct] = {}  # by the name of the layer
        self._tied_head: JoinedProduct | None = None

    @torch.no_grad()
    def adopt(self, weights: Iterable[tuple[str, Tensor, LowRank | None]]) -> None:
        """Let the model compute with these weights, without adapters and without copies, until `join` makes those."""
        plain = dict(self._model.named_parameters())
        for name, weight, _ in self._checked(weights):
            plain[name].data = self._stored(weight)
        keep_stored_weights(self._model, self._dtype)

    @torch.no_grad()
    def join(self) -> None:
        """Join the model's linear layers; its attention must be "posttrain". All weights are copies after that."""
        model, embedding = self._model, _embedding_weight(self._model)
        head = model.get_output_embeddings()
        tied = [name for name, module in model.named_modules() if module is head and head.weight is embedding]
        biased = tied if tied and head.bias is not None else []  # half of it would come, and half be shared
        before = probe_logits(model)
        products = join_linears(model, lambda: probe_logits(model), skip=biased)
        self._product_of = {layer: product for product in products for layer in product.names}
        self._tied_head = self._product_of.pop(tied[0], None) if tied else None
        if self._tied_head is not None and self._pack_embedding(self._tied_head):
            self._tied_head = None
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        if self._tied_head is not None:
            self._tied_head.whole = PlainLinear(_embedding_weight(model), None)
        if not same_logits(probe_logits(model), before):
            raise ModelError(f"{type(model).__name__} computes other logits where layers with one input are joined")

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor, LowRank | None]]) -> None:
        """Copy the weights; raises ModelError for one that the model has not, and where one is missing."""
        plain = dict(self._model.named_parameters())
        parts: dict[str, Tensor] = {}  # of products that are not complete yet
        adapters: dict[str, LowRank] = {}
        for name, weight, added in self._checked(weights):
            product = self._product_of.get(name.rpartition(".")[0])
            if added is not None and not (product is not None and is_narrower(weight.dtype, self._dtype)):
                weight, added = added.folded_into(weight, self._dtype), None
            if product is None:
                dtype = torch.promote_types(self._stored(weight).dtype, plain[name].dtype)
                plain[name].data = weight.to(self._model.device, dtype, copy=True)
                continue
            parts[name] = self._stored(weight)
            if added is not None:
                adapters[name] = added
            if all(part in parts for part in self._parts_of(product)):
                product.set([self._layer(name, parts, adapters) for name in product.names])
        if self._tied_head is not None:
            self._tied_head.whole = PlainLinear(_embedding_weight(self._model), None)

    def _checked(
        self, weights: Iterable[tuple[str, Tensor, LowRank | None]]
    ) -> Iterator[tuple[str, Tensor, LowRank | None]]:
        missing = set(self._expected)
        for name, weight, added in weights:
            if name not in self._expected:
                raise ModelError(f"expected the weights of a {type(self._model).__name__}, and got one named {name}")
            missing.discard(name)
            yield name, weight, added
        if missing:
            raise ModelError(f"{len(missing)} weights did not come with the model, such as {min(missing)}")

    def _stored(self, weight: Tensor) -> Tensor:
        """Return a weight in the dtype of products, or in its own where that is narrower."""
        dtype = weight.dtype if is_narrower(weight.dtype, self._dtype) else self._dtype
        return weight.to(self._model.device, dtype)

    def _layer(self, name: str, parts: dict[str, Tensor], adapters: dict[str, LowRank]) -> LayerWeights:
        weight = f"{name}.weight"
        return LayerWeights(parts.pop(weight), parts.pop(f"{name}.bias", None), adapters.pop(weight, None))

    def _pack_embedding(self, head: JoinedProduct) -> bool:
        """Let the embedding read the packed weight of the head that is tied to it, where both allow that."""
        embedding = self._model.get_input_embeddings()
        if type(embedding) not in (nn.Embedding, FrozenEmbedding) or not isinstance(head.whole, CompiledLinear):
            return False
        (name,) = (name for name, module in self._model.named_modules() if module is embedding)
        self._model.set_submodule(name, PackedEmbedding(head))
        head.names = [name]  # by which its weight comes
        self._product_of[name] = head
        return True

    def _parts_of(self, product: JoinedProduct) -> list[str]:
        names = [f"{layer}.{kind}" for layer in product.names for kind in ("weight", "bias")]
        return [name for name in names if name in self._expected]


def _embedding_weight(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight

"""The matrix products of an inference copy: linear layers that read the same input are joined into one.

Floor 2: knows torch modules, and no architecture by name: which layers share an input is seen in one forward. Decoding
streams every weight once a step, so fewer and larger products, of weights that already lie as the CPU's kernel wants
them, are most of its speed.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.kernels.operations import LANES, Kernels, PackedLinear, compiled_kernels
from posttrain.models.attention import RowsLayout
from posttrain.models.devices import multiplies_bfloat16_fast

PROBE = (11, 7, 5)  # taken modulo the vocabulary
PACKED_ROWS = 16  # rows that the packed layout is chosen for; it serves any number


class StoredLinear(Protocol):
    """A linear layer's weight and bias, laid out for the products of an inference copy."""

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return `x @ weight.T + bias + other`, `(..., K)` to `(..., N)`."""
        ...


class PlainLinear(NamedTuple):
    """As torch has it."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        product = nn.functional.linear(x, self.weight, self.bias)
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


def stored_linear(weight: Tensor, bias: Tensor | None) -> StoredLinear:
    """Return a copy of a linear layer in the layout that is fastest where it lies."""
    kernels = compiled_kernels(weight.device, weight.dtype)
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


@dataclass(eq=False)
class JoinedProduct:
    """The product of several linear layers with the same input, and where their outputs wait."""

    names: Sequence[str]  # of the layers, in the order in which the model calls them
    sizes: Sequence[int]  # of their outputs
    whole: StoredLinear  # of all outputs, one after the other
    outputs: Sequence[Tensor] = ()  # of the layers, between the first one's call and the last one's
    input: Tensor | None = None

    def set(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take copies of the layers' weights and biases, in order; those of a single layer where its old ones lie."""
        if len(weights) == 1 and biases[0] is None and isinstance(self.whole, CompiledLinear):
            self.whole.kernels.repack(self.whole.packed, weights[0])
        else:
            self.whole = _joined(weights, biases)

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
        layers = [model.get_submodule(name) for name in names]
        weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
        biases = [layer.bias for layer in layers if isinstance(layer, nn.Linear)]
        product = JoinedProduct(names, [len(weight) for weight in weights], _joined(weights, biases))
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


def _joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> StoredLinear:
    if all(bias is None for bias in biases):
        return stored_linear(torch.cat(list(weights)), None)
    pairs = zip(weights, biases, strict=True)
    bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])
    return stored_linear(torch.cat(list(weights)), bias)


def _groups_by_input(model: nn.Module, run: Callable[[], object]) -> list[list[str]]:
    """Return the names of the linear layers that `run` calls once, those with the same input together, in order."""
    calls: list[tuple[str, Tensor, int]] = []  # holds every input, so no two of them have the same id
    hooks = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:

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
        self._model = model
        self._expected = {name for name, _ in model.named_parameters()}  # a tied head comes as the embedding
        self._product_of: dict[str, JoinedProduct] = {}  # by the name of the layer
        self._tied_head: JoinedProduct | None = None

    @torch.no_grad()
    def join(self) -> None:
        """Join the model's linear layers; its attention must be "posttrain"."""
        model, embedding = self._model, _embedding_weight(self._model)
        head = model.get_output_embeddings()
        tied = [name for name, module in model.named_modules() if module is head and head.weight is embedding]
        biased = tied if tied and head.bias is not None else []  # half of it would come, and half be shared
        before = probe_logits(model)
        products = join_linears(model, lambda: probe_logits(model), skip=biased)
        self._product_of = {layer: product for product in products for layer in product.names}
        self._tied_head = self._product_of.pop(tied[0], None) if tied else None
        if self._tied_head is not None and not self._pack_embedding(self._tied_head):
            self._tied_head.whole = PlainLinear(embedding, None)
        if not same_logits(probe_logits(model), before):
            raise ModelError(f"{type(model).__name__} computes other logits where layers with one input are joined")

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the weights; raises ModelError for one that the model has not, and where one is missing."""
        plain = dict(self._model.named_parameters())
        missing = set(self._expected)
        parts: dict[str, Tensor] = {}  # of products that are not complete yet
        for name, weight in weights:
            if name not in self._expected:
                raise ModelError(f"expected the weights of a {type(self._model).__name__}, and got one named {name}")
            missing.discard(name)
            if name in plain:
                plain[name].copy_(weight)
                continue
            parts[name] = weight.to(self._model.device, self._model.dtype)
            product = self._product_of[name.rpartition(".")[0]]
            if all(part in parts for part in self._parts_of(product)):
                product.set(
                    [parts.pop(f"{layer}.weight") for layer in product.names],
                    [parts.pop(f"{layer}.bias", None) for layer in product.names],
                )
        if missing:
            raise ModelError(f"{len(missing)} weights did not come with the model, such as {min(missing)}")
        if self._tied_head is not None:
            self._tied_head.whole = PlainLinear(_embedding_weight(self._model), None)

    def _pack_embedding(self, head: JoinedProduct) -> bool:
        """Let the embedding read the packed weight of the head that is tied to it, where both allow that."""
        embedding = self._model.get_input_embeddings()
        if type(embedding) is not nn.Embedding or not isinstance(head.whole, CompiledLinear):
            return False
        (name,) = (name for name, module in self._model.named_modules() if module is embedding)
        self._model.set_submodule(name, PackedEmbedding(head))
        head.names = [name]  # by which its weight comes
        self._product_of[name], self._tied_head = head, None
        return True

    def _parts_of(self, product: JoinedProduct) -> list[str]:
        names = [f"{layer}.{kind}" for layer in product.names for kind in ("weight", "bias")]
        return [name for name in names if name in self._expected]


def _embedding_weight(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight

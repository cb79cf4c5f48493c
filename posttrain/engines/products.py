"""The matrix products of an inference copy: linear layers that read the same input are joined into one.

Floor 2: knows torch modules, and no architecture by name: which layers share an input is seen in one forward. Decoding
streams every weight once a step, so fewer and larger products, of weights that already lie as the CPU's kernel wants
them, are most of its speed (576 -> 3072 in bf16, 16 rows, 2 cores: 153 us packed, 258 us by `F.linear`).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.attention import RowsLayout
from posttrain.models.devices import multiplies_bfloat16_fast

PROBE = (11, 7, 5)  # taken modulo the vocabulary
PACKED_ROWS = 16  # rows that the packed layout is chosen for; it serves any number


@dataclass(eq=False)
class JoinedProduct:
    """`x @ weight.T + bias` for several linear layers with the same input, and where their outputs wait."""

    names: Sequence[str]  # of the layers, in the order in which the model calls them
    sizes: Sequence[int]  # of their outputs
    packs: bool  # whether the weight is kept in oneDNN's own layout
    weight: Tensor = field(default_factory=lambda: torch.empty(0))  # (sum of sizes, K) before packing
    bias: Tensor | None = None
    outputs: Sequence[Tensor] = ()  # of the layers, between the first one's call and the last one's
    input: Tensor | None = None

    def set(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take copies of the layers' weights and biases, in order."""
        self.share(torch.cat(list(weights)))
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            self.bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])

    def share(self, weight: Tensor) -> None:
        """Take a weight as it is, such as the embedding's for a tied head; its own memory, where it is not packed."""
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS) if self.packs else weight

    def whole(self, x: Tensor) -> Tensor:
        """Return the outputs of all layers, one after the other: `(..., K)` to `(..., sum of sizes)`."""
        if self.packs:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return product
        return nn.functional.linear(x, self.weight, self.bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Return `whole(x) + other`, added before the product is rounded where the weight is packed."""
        if self.packs:
            total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
            return total
        return self.whole(x).add_(other)

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
        product = JoinedProduct(names, [len(weight) for weight in weights], _packs(weights[0]))
        product.set(weights, [layer.bias for layer in layers if isinstance(layer, nn.Linear)])
        for place, name in enumerate(names):
            model.set_submodule(name, JoinedLinear(product, place))
        products.append(product)
    return products


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


def _packs(weight: Tensor) -> bool:
    """Say whether oneDNN's packed products serve a weight: torch's own compiler uses the same two operators."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and multiplies_bfloat16_fast(weight.device)
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


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
        if self._tied_head is not None:
            self._tied_head.share(embedding)
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
            self._tied_head.share(_embedding_weight(self._model))

    def _parts_of(self, product: JoinedProduct) -> list[str]:
        names = [f"{layer}.{kind}" for layer in product.names for kind in ("weight", "bias")]
        return [name for name in names if name in self._expected]


def _embedding_weight(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight

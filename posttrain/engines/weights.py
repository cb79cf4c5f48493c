"""The weights of an inference copy, set by the names of the plain model wherever they live.

Floor 2: on the joined products of `products.py`. Weights that are narrower than the products' dtype stay so.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engines.products import JoinedProduct, LayerWeights, join_linears, probe_logits, same_logits
from posttrain.errors import ModelError
from posttrain.models.frozen import is_narrower, keep_stored_weights
from posttrain.models.logprobs import compute_dtype
from posttrain.models.lora import LowRank


class InferenceWeights:
    """The weights of an inference copy, set by the names of the plain model even where they live in joined products."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._dtype = model, compute_dtype(model)
        self._expected = {name for name, _ in model.named_parameters()}  # a tied head comes as the embedding
        self._product_of: dict[str, JoinedProduct] = {}  # by the name of the layer
        self._tied_head: JoinedProduct | None = None

    @torch.no_grad()
    def adopt(self, weights: Iterable[tuple[str, Tensor, LowRank | None]]) -> None:
        """Let the model compute with these weights, without adapters and without copies, for `join`."""
        plain = dict(self._model.named_parameters())
        for name, weight, _ in self._checked(weights):
            plain[name].data = self._stored(weight)
        keep_stored_weights(self._model, self._dtype)

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
        if not same_logits(probe_logits(model), before):
            raise ModelError(f"{type(model).__name__} computes other logits where layers with one input are joined")

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor, LowRank | None]]) -> None:
        """Compute with these weights: frozen ones are shared where they can be, those that are trained are copied.

        Raises ModelError for one that the model has not, and where one is missing.
        """
        plain = dict(self._model.named_parameters())
        parts: dict[str, Tensor] = {}  # of products that are not complete yet
        adapters: dict[str, LowRank] = {}
        for name, weight, added in self._checked(weights):
            product = self._product_of.get(name.rpartition(".")[0])
            if product is None:
                whole = weight if added is None else added.folded_into(weight, self._dtype)
                dtype = torch.promote_types(self._stored(whole).dtype, plain[name].dtype)
                plain[name].data = whole.detach().to(self._model.device, dtype, copy=whole.requires_grad)
                continue
            parts[name] = weight.to(self._model.device)
            if added is not None:
                adapters[name] = added
            if all(part in parts for part in self._parts_of(product)):
                product.set([self._layer(name, parts, adapters) for name in product.names])
        if self._tied_head is not None:
            self._tied_head.set([LayerWeights(_embedding_weight(self._model))])

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

    def _parts_of(self, product: JoinedProduct) -> list[str]:
        names = [f"{layer}.{kind}" for layer in product.names for kind in ("weight", "bias")]
        return [name for name in names if name in self._expected]


def _embedding_weight(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight

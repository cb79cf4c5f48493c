"""All decoder layers of a model in one call of the compiled kernels: a decoding step without Python between its parts.

Floor 2: for models whose layers are all short ones (see `layers.py`), on a CPU with a compiler; what their arithmetic
is, `tests/engines/test_stack.py` checks against transformers' layers. Decoding on SmolLM2-135M's shape in bf16, 2
cores with AMX, in turn: a step of 16 sequences takes 84 ms by torch's operations, 56 ms with compiled ones layer by
layer, 17 ms so; of 64 sequences 118, 92 and 39 ms.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engines.cache import KeyValueCache
from posttrain.engines.layers import ShortDecoderLayer, head_norms
from posttrain.engines.layouts import DecodeLayout, Grouping, PrefillLayout
from posttrain.engines.products import CompiledLinear, StoredLinear, probe_ids, probe_logits, same_logits
from posttrain.kernels.operations import (
    LANES,
    MAX_HEAD_SIZE,
    Attention,
    Kernels,
    Layer,
    compiled_kernels,
    decode_step,
)
from posttrain.models.compiled_layers import sliding_window
from posttrain.models.logprobs import compute_dtype

logger = logging.getLogger(__name__)


class LayerStack:
    """Computes decoding steps of a model with its weights of now; `stack_agrees` says whether it may."""

    def __init__(self, model: PreTrainedModel) -> None:
        kernels = compiled_kernels(model.device, compute_dtype(model))
        assert kernels is not None
        body: Any = model.base_model
        self._kernels, self._model, self._body = kernels, model, body
        layers = [_layer(layer, kernels) for layer in body.layers]
        self._layers = (Layer * len(layers))(*layers)
        self._allocations: tuple[object, object] | None = None  # of the caches that the layers point to
        self._angles: tuple[Tensor, Tensor] | None = None  # cosines and sines of all positions in them, (N, D)

    def logits(self, ids: Tensor, layout: DecodeLayout) -> Tensor:
        """Return the logits `(B, V)` after one more token `(B,)` of each row, and write its keys and values."""
        hidden = self._body.embed_tokens(ids)  # (B, E)
        if (layout.prompts.allocation, layout.completions.allocation) != self._allocations:
            self._point_to(layout.prompts, layout.completions, hidden)
        if self._angles is None:
            cos, sin = self._angles_at(layout.positions, hidden)
        else:
            cos, sin = (angles.index_select(0, layout.positions) for angles in self._angles)
        step = decode_step(layout.rows, (cos, sin), layout.prompts.length, layout.completions.length)
        norm, head = self._body.norm, self._model.get_output_embeddings()
        self._kernels.decode_layers(step, self._layers, norm.weight, norm.variance_epsilon, hidden)
        logits: Tensor = head(hidden)
        return logits

    def _point_to(self, prompts: KeyValueCache, completions: KeyValueCache, hidden: Tensor) -> None:
        for index, layer in enumerate(self._layers):
            of_prompts = prompts.whole(index)
            layer.attention.use(of_prompts, completions.open(index, *of_prompts))
        self._allocations = prompts.allocation, completions.allocation
        if not _angles_change(self._body.rotary_emb):
            positions = torch.arange(prompts.length + completions.length, device=hidden.device)
            self._angles = self._angles_at(positions, hidden)

    def _angles_at(self, positions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._body.rotary_emb(hidden, positions[None])
        return cos[0], sin[0]


def stack_agrees(model: PreTrainedModel) -> bool:
    """Say whether a stack can decode for the model; tries it on a token, and warns where the logits are others."""
    layers = getattr(model.base_model, "layers", [])
    if not layers or not all(map(_is_served, layers)):
        return False
    if same_logits(decoded_logits(model), probe_logits(model)[-1]):
        return True
    logger.warning("%s decodes to other logits by compiled kernels; torch's operations serve", type(model).__name__)
    return False


@torch.no_grad()
def decoded_logits(model: PreTrainedModel) -> Tensor:
    """Return the last row `(V,)` of `probe_logits`, the last token decoded by a stack after a prompt of the others."""
    device = model.device
    *prompt, last = probe_ids(model)
    prompts, completions = KeyValueCache(), KeyValueCache()
    prompts.reserve(1, len(prompt))
    completions.reserve(1, 1)
    layout = PrefillLayout(prompts, [len(prompt)], [0], device)
    ids = torch.tensor([prompt], device=device)
    model(input_ids=ids, position_ids=layout.positions[None], layout=layout, use_cache=False)
    grouping = Grouping([0], [len(prompt)], device)
    decode = DecodeLayout(prompts, completions, grouping, torch.tensor([0], device=device))
    return LayerStack(model).logits(torch.tensor([last], device=device), decode)[0].float()


def _angles_change(rotary: Any) -> bool:
    """Say whether a position's angles depend on the longest one (transformers' `dynamic_rope_update`)."""
    return "dynamic" in rotary.rope_type or rotary.rope_type == "longrope"


def _is_served(layer: Any) -> bool:
    if not isinstance(layer, ShortDecoderLayer) or layer.kernels is None:
        return False
    size = layer.self_attn.head_dim
    compiled = all(isinstance(whole, CompiledLinear) for whole in _products(layer))
    return compiled and size % LANES == 0 and size <= MAX_HEAD_SIZE


def _products(layer: Any) -> list[StoredLinear]:
    """Return those of query, key and value; of the output; of gate and up; and of the way down."""
    linears = (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj)
    return [linear.product.whole for linear in linears]


def _layer(layer: Any, kernels: Kernels) -> Layer:
    attention = layer.self_attn
    states, output, gate_up, down = (whole.linear for whole in _products(layer) if isinstance(whole, CompiledLinear))
    heads = output.inputs // attention.head_dim
    *norms, epsilon = head_norms(attention) or (None, None, 0.0)
    return Layer(
        attention_norm=kernels.at(layer.input_layernorm.weight),
        mlp_norm=kernels.at(layer.post_attention_layernorm.weight),
        epsilon=layer.input_layernorm.variance_epsilon,
        states=states,
        output=output,
        gate_up=gate_up,
        down=down,
        attention=Attention(
            heads=heads,
            kv_heads=heads // attention.num_key_value_groups,
            size=attention.head_dim,
            scaling=attention.scaling,
            epsilon=epsilon,
            query_norm=None if norms[0] is None else kernels.at(norms[0]),
            key_norm=None if norms[1] is None else kernels.at(norms[1]),
            window=sliding_window(attention) or 0,
        ),
    )

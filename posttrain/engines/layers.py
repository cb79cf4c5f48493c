"""Decoder layers of Llama's form in as few operations as they need, for a decoding step makes thousands of small calls.

Floor 2: the arithmetic of transformers' own layers (RMSNorm, rotary positions, grouped-query attention, SwiGLU), over
the joined products of an inference copy. The layers of Llama, Mistral, Qwen2 and Qwen3 have this form; all others stay
as they are. On a CPU, decoding steps go through `stack.py` instead, and these layers compute the prompts.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from posttrain.engines.products import JoinedLinear, probe_logits, same_logits
from posttrain.kernels.operations import LANES, Kernels, compiled_kernels
from posttrain.models.attention import AttentionLayout
from posttrain.models.compiled_layers import sliding_window
from posttrain.models.logprobs import compute_dtype

logger = logging.getLogger(__name__)

LLAMA_LIKE = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)


@torch.no_grad()
def shorten_layers(model: PreTrainedModel) -> None:
    """Let those layers of an inference copy that have Llama's form compute by `ShortDecoderLayer`.

    Their linear layers must be joined already; weights and their names stay. Where the logits change, nothing does.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) in LLAMA_LIKE and _is_plain(module)]
    classes = [type(layer) for layer in layers]
    before = probe_logits(model)
    for layer in layers:
        layer.__class__ = ShortDecoderLayer
        layer.kernels = compiled_kernels(model.device, compute_dtype(model))
    if not same_logits(probe_logits(model), before):
        for layer, own in zip(layers, classes, strict=True):
            layer.__class__ = own
            del layer.kernels
        logger.warning("%s computes other logits in short layers; it keeps its own, slower ones", type(model).__name__)


class ShortDecoderLayer(nn.Module):
    """A decoder layer over packed tokens; its attributes are those of the transformers layer that it was."""

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    kernels: Kernels | None

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        layout: AttentionLayout,
        **_: Any,
    ) -> Tensor:
        """Return the hidden states `(1, T, E)` after this layer."""
        attention, mlp = self.self_attn, self.mlp
        (hidden,) = hidden_states  # (T, E)
        states = attention.q_proj.product.whole(self._rms_norm(hidden, self.input_layernorm))
        states = states.view(len(states), -1, attention.head_dim)  # (T, H + 2 Hkv, D)
        attended = self._attended(states, position_embeddings, layout)
        hidden = attention.o_proj.product.whole(attended, hidden)
        gate_up = mlp.gate_proj.product.whole(self._rms_norm(hidden, self.post_attention_layernorm))
        return mlp.down_proj.product.whole(self._swiglu(gate_up), hidden)[None]

    def _attended(self, states: Tensor, angles: tuple[Tensor, Tensor], layout: AttentionLayout) -> Tensor:
        """Normalise, turn and attend; heads `(T, H + 2 Hkv, D)` to `(T, H * D)`."""
        attention = self.self_attn
        kv_heads = states.shape[1] // (attention.num_key_value_groups + 2)
        rotated, value = states.split([states.shape[1] - kv_heads, kv_heads], dim=1)
        sizes = [rotated.shape[1] - kv_heads, kv_heads]
        if (norms := head_norms(attention)) is not None:
            *weights, epsilon = norms
            query, key = (
                _rotate(F.rms_norm(heads, weight.shape, weight, epsilon), *angles)
                for heads, weight in zip(rotated.split(sizes, dim=1), weights, strict=True)
            )
        else:
            query, key = _rotate(rotated, *angles).split(sizes, dim=1)
        heads = (each.transpose(0, 1)[None] for each in (query, key, value))
        options = {"scaling": attention.scaling, "sliding_window": sliding_window(attention), "softcap": None}
        return layout.attend(attention.layer_idx, *heads, **options).flatten(2)[0]

    def _rms_norm(self, x: Tensor, norm: Any) -> Tensor:
        if self.kernels is not None:
            return self.kernels.rms_norm(x, norm.weight, norm.variance_epsilon)
        return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)

    def _swiglu(self, gate_up: Tensor) -> Tensor:
        if self.kernels is not None and gate_up.shape[-1] % (2 * LANES) == 0:
            return self.kernels.swiglu_of_joined(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


def _is_plain(layer: Any) -> bool:
    """Say whether query, key and value are one product, gate and up another, the other two their own; and SwiGLU."""
    attention, mlp = layer.self_attn, layer.mlp
    return mlp.config.hidden_act == "silu" and all(
        map(
            _are_one,
            [
                [attention.q_proj, attention.k_proj, attention.v_proj],
                [attention.o_proj],
                [mlp.gate_proj, mlp.up_proj],
                [mlp.down_proj],
            ],
        )
    )


def _are_one(linears: Sequence[nn.Module]) -> bool:
    """Say whether the layers are all that one joined product computes."""
    products = [linear.product for linear in linears if isinstance(linear, JoinedLinear)]
    return len(products) == len(linears) == len(products[0].names) and all(each is products[0] for each in products)


def head_norms(attention: Any) -> tuple[Tensor, Tensor, float] | None:
    """Return the weights of the norms of query and key heads, and their epsilon, for the models that have them."""
    if not hasattr(attention, "q_norm"):
        return None
    return attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads `(T, H, D)` by their positions' angles `(1, T, D)`: (a, b) to (a cos - b sin, b cos + a sin)."""
    cos, sin = cos[0, :, None], sin[0, :, None]  # (T, 1, D)
    half = heads.shape[-1] // 2
    rotated = heads * cos
    rotated[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return rotated

"""RMSNorm, SwiGLU and rotary embeddings of a model by the compiled kernels, forward and backward in one pass each.

Floor 1: for the modules of Llama's, Mistral's and Qwen's form on a CPU with a compiler; names, weights and files stay.
Between its products torch makes a dozen passes over a layer's activations, and keeps half of them for the backward
pass: of a norm float32 copies, of SwiGLU silu(gate) beside gate and up. The kernels keep the inputs alone.
Linear layers that read the same input compute together (`lora_linear.project`), on every device.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

from posttrain.kernels.operations import COLUMNS, LANES, Kernels, compiled_kernels
from posttrain.models.attention import ATTENTION_NAME, attention_forward
from posttrain.models.lora_linear import project

NORMS: tuple[type, ...] = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
MLPS: tuple[type, ...] = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)
ATTENTIONS: tuple[type, ...] = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)


def compile_layers(model: nn.Module) -> None:
    """Let the model's norms, MLPs and attention of known form compute by compiled kernels wherever these serve."""
    module: Any
    for module in model.modules():
        if type(module) in NORMS:
            module.__class__ = _with(CompiledNorm, type(module))
        elif type(module) in MLPS and module.config.hidden_act == "silu":
            module.__class__ = _with(CompiledMLP, type(module))
        elif type(module) in ATTENTIONS:
            module.__class__ = _with(CompiledAttention, type(module))


def _with(compiled: type, own: type) -> type:
    """Return a subclass of a module's own class that computes by another one's forward first."""
    return type(f"{compiled.__name__}Of{own.__name__}", (compiled, own), {})


class CompiledNorm:
    """RMSNorm; the module's own forward where no kernel serves it."""

    weight: Any
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised `(..., E)`."""
        kernels = _kernels(hidden_states, self.weight)
        if kernels is None:
            own: Any = super()
            return cast(Tensor, own.forward(hidden_states))
        return cast(Tensor, _RMSNorm.apply(hidden_states.contiguous(), self.weight, self.variance_epsilon, kernels))


class CompiledMLP:
    """SwiGLU between its three linear layers."""

    gate_proj: Any
    up_proj: Any
    down_proj: Any

    def forward(self, x: Tensor) -> Tensor:
        """Return `(..., E)` of `(..., E)`."""
        gate, up = project(x, self.gate_proj, self.up_proj)
        kernels = _kernels(gate, up)
        activated = nn.functional.silu(gate) * up if kernels is None else _SwiGLU.apply(gate, up, kernels)
        return cast(Tensor, self.down_proj(activated))


class CompiledAttention:
    """Projections of one input together and rotary embeddings, around the attention of a layout."""

    config: Any
    head_dim: int
    scaling: float
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `(B, T, E)` of `(B, T, E)`, and no weights; under another attention, what the module's own returns."""
        if self.config._attn_implementation != ATTENTION_NAME or past_key_values is not None:
            own: Any = super()
            return cast(
                tuple[Tensor, Tensor | None],
                own.forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs),
            )
        module: Any = self
        query, key, value = (
            states.view(*states.shape[:-1], -1, self.head_dim)
            for states in project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = module.q_norm(query), module.k_norm(key)
        query, key = (rotated(states, *position_embeddings).transpose(1, 2) for states in (query, key))
        value, window = value.transpose(1, 2), sliding_window(module)
        attended, _ = attention_forward(
            module, query, key, value, None, scaling=self.scaling, sliding_window=window, **kwargs
        )
        return self.o_proj(attended.flatten(2)), None


def sliding_window(attention: Any) -> int | None:
    """Return the layer's window: Qwen keeps it in its attention, Mistral in its config, and Llama has none.

    A Llama's config may have the key nevertheless.
    """
    of_config = attention.config.sliding_window if isinstance(attention, MistralAttention) else None
    window: int | None = getattr(attention, "sliding_window", of_config)
    return window


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads `(B, T, H, D)` turned by the angles of their positions, whose cosines and sines are `(B, T, D)`.

    Rotary embeddings (Su et al. 2021, arXiv 2104.09864), of the halves of a head as transformers has them.
    """
    cos, sin = (angles.expand(len(states), -1, -1) for angles in (cos, sin))  # one row of them may serve all
    kernels = _kernels(states, cos) if states.shape[-1] % COLUMNS == 0 else None
    if kernels is not None:
        return cast(Tensor, _Rotation.apply(states.contiguous(), cos.contiguous(), sin.contiguous(), kernels))
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos[:, :, None] + turned * sin[:, :, None]


def _kernels(x: Tensor, other: Tensor) -> Kernels | None:
    """Return the kernels that serve two tensors with the same last dimension."""
    if x.dtype != other.dtype or x.shape[-1] % LANES:
        return None
    return compiled_kernels(x.device, x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.kernels = epsilon, kernels
        return kernels.rms_norm(x, weight, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), kernels, grad_out = ctx.saved_tensors, ctx.kernels, grad_out.contiguous()
        grad_x = kernels.rms_norm_backward(x, weight, grad_out, ctx.epsilon) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            scaled = kernels.rms_norm(x, torch.ones_like(weight), ctx.epsilon)
            grad_weight = (grad_out.float() * scaled).flatten(0, -2).sum(dim=0).to(weight.dtype)
        return grad_x, grad_weight, None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return kernels.rotate(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return ctx.kernels.rotate(grad_out.contiguous(), cos, sin, back=True), None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: Kernels) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return kernels.swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.kernels.swiglu_backward(*ctx.saved_tensors, grad_out.contiguous()), None

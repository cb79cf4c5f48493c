"""What an architecture can do, found by trying: prompt trees, plain rows, or neither.

Floor 1: compares one forward pass of ours with the model's own on a tree of five tokens, by log-probs, or by hidden
states where there is no vocabulary head. Learned from the model itself, so no list of architectures has to be kept.
"""

import logging
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import ModelError, PosttrainError
from posttrain.models.attention import ATTENTION_NAME, TreeLayout
from posttrain.models.logprobs import compute_autocast, compute_dtype, head_logprobs, hidden_states

logger = logging.getLogger(__name__)

# A prompt of two tokens with branches of one and two; the numbers are token ids, taken modulo the vocabulary.
PROMPT, BRANCHES = (11, 7), ((5,), (3, 13))
# Of log-probs or hidden states, relative to their spread (at least 2): a logit of 16 has steps of 0.0625 in bfloat16.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05}


class _RecordingLayout(TreeLayout):
    """The probe's tree, noting which layers came."""

    def __init__(self, device: torch.device) -> None:
        super().__init__([(0, 2)], [(2, 1), (3, 2)], [0, 0], device=device)
        self.layers: list[int] = []

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        self.layers.append(layer_index)
        return super().attend(
            layer_index, query, key, value, scaling=scaling, sliding_window=sliding_window, softcap=softcap
        )


@torch.no_grad()
def prepare_attention(transformer: PreTrainedModel, wanted: Literal["tree", "rows"]) -> Literal["tree", "rows"]:
    """Return the layout to train in, with the model's attention set for it; rows, with a notice, if trees don't fit.

    Raises ModelError where even rows don't reproduce the model's own logits.
    """
    was_training = transformer.training
    transformer.eval()
    own = transformer.config._attn_implementation
    expected = _own_outputs(transformer)
    layout: Literal["tree", "rows"] = "rows"
    if wanted == "tree":
        reason = _why_no_trees(transformer, expected)
        if reason is None:
            layout = "tree"
        else:
            transformer.set_attn_implementation(own)
            logger.warning("%s: %s; completions are laid out as rows", type(transformer).__name__, reason)
    if layout == "rows" and not _close(_rows_outputs(transformer), expected, transformer):
        raise ModelError(f"{type(transformer).__name__} computes its logits in a way that is not supported")
    transformer.train(was_training)
    return layout


def _why_no_trees(transformer: PreTrainedModel, expected: Tensor) -> str | None:
    """Return why prompt trees don't work on the model, whose attention is set to ours; None where they do."""
    config = transformer.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"has layers of {', '.join(sorted(kinds))}"
    if not transformer._can_set_attn_implementation():
        return "its attention does not go through transformers' registry"
    transformer.set_attn_implementation(ATTENTION_NAME)
    recording = _RecordingLayout(transformer.device)
    try:
        got = _tree_outputs(transformer, recording)
    except (PosttrainError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        return f"refuses prompt trees ({str(error).splitlines()[0]})"
    if sorted(recording.layers) != list(range(config.num_hidden_layers)):
        return "not all of its layers attend through transformers' registry"
    return None if _close(got, expected, transformer) else "prompt trees change its log-probs"


def _own_outputs(transformer: PreTrainedModel) -> Tensor:
    """Return the log-probs `(3, V)` after each branch token, or its hidden states `(3, E)`; each branch is a row."""
    rows = [_tensor(transformer, [*PROMPT, *branch]) for branch in BRANCHES]
    with compute_autocast(transformer):
        if transformer.get_output_embeddings() is None:
            outputs = [transformer.base_model(input_ids=row, use_cache=False) for row in rows]
            return torch.cat([output.last_hidden_state[0, len(PROMPT) :] for output in outputs]).float()
        logits = [transformer(input_ids=row, use_cache=False).logits[0, len(PROMPT) :] for row in rows]
    return torch.cat(logits).float().log_softmax(-1)


def _rows_outputs(transformer: PreTrainedModel) -> Tensor:
    states = []
    for branch in BRANCHES:
        ids = _tensor(transformer, [*PROMPT, *branch])
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = hidden_states(transformer, ids, positions, attention_mask=torch.ones_like(ids, dtype=torch.bool))
        states.append(hidden[0, len(PROMPT) :])
    return _outputs(transformer, torch.cat(states))


def _tree_outputs(transformer: PreTrainedModel, layout: TreeLayout) -> Tensor:
    ids = _tensor(transformer, [*PROMPT, *BRANCHES[0], *BRANCHES[1]])
    positions = torch.tensor([[0, 1, 2, 2, 3]], device=ids.device)
    hidden = hidden_states(transformer, ids, positions, layout=layout)
    return _outputs(transformer, hidden[0, len(PROMPT) :])


def _outputs(transformer: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the log-probs `(3, 16)` of the vocabulary's first 16 ids; `(3, E)` as it is without a vocabulary head."""
    if transformer.get_output_embeddings() is None:
        return hidden.float()
    count = min(16, transformer.config.get_text_config().vocab_size)
    targets = torch.arange(count, device=hidden.device).repeat(len(hidden))
    logprobs, _ = head_logprobs(transformer, hidden.repeat_interleave(count, dim=0), targets)
    return logprobs.view(len(hidden), count)


def _close(got: Tensor, expected: Tensor, transformer: PreTrainedModel) -> bool:
    tolerance = TOLERANCES.get(compute_dtype(transformer), 0.05)
    spread = max(2.0, (expected.max() - expected.min()).item())
    return bool((got - expected[:, : got.shape[1]]).abs().max() < tolerance * spread)


def _tensor(transformer: PreTrainedModel, ids: list[int]) -> Tensor:
    vocabulary = transformer.config.get_text_config().vocab_size
    return torch.tensor([[token % vocabulary for token in ids]], device=transformer.device)

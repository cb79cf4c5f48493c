"""Model shapes to measure, as random models on disk with a tokenizer and a LoRA adapter, and the products they need.

Both sides load the same files, so they start from the same weights and the same adapter.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
LORA_R, LORA_ALPHA = 16, 32
TEXT_TOKENS = 6000  # tokens that text is made of; the rest of a vocabulary is filler, there for its size
SPARE_IDS = 8  # that no token has: transformers adds the end tokens of an architecture's own tokenizer
CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder with tied embeddings."""

    name: str
    architecture: Literal["llama", "qwen2"]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def body_weights(self) -> int:
        """Return the weights of all matrices inside the layers."""
        return self.layers * sum(rows * columns for rows, columns in self._projections())

    @property
    def adapter_weights(self) -> int:
        """Return the weights of a LoRA adapter on all projections."""
        return self.layers * sum(LORA_R * (rows + columns) for rows, columns in self._projections())

    @property
    def head_weights(self) -> int:
        """Return the weights of the head, which the embedding shares."""
        return self.vocab * self.hidden

    def _projections(self) -> list[tuple[int, int]]:
        kv = self.hidden * self.kv_heads // self.heads
        attention = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        return attention + 3 * [(self.hidden, self.intermediate)]

    def forward_flops(self, tokens: float, head_tokens: float) -> float:
        """Return the operations of a forward pass: 2 for each weight and token; attention's own are left out."""
        return 2 * tokens * (self.body_weights + self.adapter_weights) + 2 * head_tokens * self.head_weights

    def backward_flops(self, tokens: float, head_tokens: float) -> float:
        """Return those of the backward pass to an adapter: frozen weights only pass the gradient on."""
        return 2 * tokens * (self.body_weights + 2 * self.adapter_weights) + 2 * head_tokens * self.head_weights


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("SmolLM2-135M", "llama", 30, 576, 1536, 9, 3, 49_152),
        Shape("Qwen2.5-0.5B", "qwen2", 24, 896, 4864, 14, 2, 151_936),
    )
}


def write_model(shape: Shape, texts: list[str], directory: Path) -> tuple[Path, Path]:
    """Write a random model of this shape with its tokenizer, and an adapter; return both directories.

    The adapter's B is not 0: with B = 0 the gradient of A would be 0, and the sides could not be told apart by it.
    """
    base, adapter = directory / "base", directory / "adapter"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    }
    config_class, model_class = ARCHITECTURES[shape.architecture]
    model = model_class(config_class(**sizes)).to(torch.bfloat16)
    model.save_pretrained(str(base))
    make_tokenizer(texts, shape.vocab).save_pretrained(str(base))
    config = LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(adapter), save_embedding_layers=False)
    return base, adapter


def make_tokenizer(texts: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learned from the texts, filled up to nearly `vocab` entries, out of reach."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(TEXT_TOKENS, vocab),
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())
    entries = learned["model"]["vocab"]
    entries.update({f"<{index}>": index for index in range(len(entries), vocab - SPARE_IDS)})
    filled = Tokenizer.from_str(json.dumps(learned))
    return PreTrainedTokenizerFast(tokenizer_object=filled, eos_token="<eos>", pad_token="<pad>")

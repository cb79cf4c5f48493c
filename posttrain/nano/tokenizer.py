"""The nano base's tokenizer: byte-level pairs in which every digit is a token of its own.

Floor 0. Trained on a sample of the corpus; any text round-trips, since all 256 bytes are in the vocabulary.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
PAD = "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "Assistant: {% generation %}{{ message.content }}<|endoftext|>{% endgeneration %}{{ '\\n' }}"
    "{% elif message.role == 'system' %}{{ message.content }}\n"
    "{% else %}User: {{ message.content }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def train_tokenizer(documents: Iterable[str], vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """Train the byte-pair merges on documents and return a tokenizer with the nano chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
    )

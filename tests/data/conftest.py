"""Real tokenizers, trained here on a few lines, with chat templates of the three common shapes."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "Janet has 16 eggs and sells 9 of them. How many are left?",
    "She has 16 - 9 = 7 eggs left. The answer is 7.",
    "user assistant system You are a helpful assistant. Hello! How are you? I am fine.",
    "<think> first add, then subtract </think> <answer> 12 </answer>",
] * 20

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Writes the day into the system turn the way Llama 3.2 does, with the same fallback where it cannot ask for it.
DATED = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "<|im_start|>system\n" }}\n{{- "Cutting Knowledge Date: December 2023\n" }}\n'
    '{{- "Today Date: " + date_string + "\n\n" }}\n{{- "<|im_end|>" }}\n' + CHATML
)
# Drops the thinking of all but the last assistant turn, as Qwen3 does.
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and not loop.last and '</think>' in message.content %}"
    "{{ message.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
# The same with generation marks that leave the end token out, as careless templates do.
QWEN3_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{% if not loop.last and '</think>' in message.content %}{{ message.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ message.content }}{% endif %}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNMARKED_TURNS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _train(specials: list[str], *, bos: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(LINES, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    """ChatML: the end of a turn is the end-of-sequence token, and nothing is put before a text."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_train(specials), eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


@pytest.fixture(scope="session")
def llama3() -> PreTrainedTokenizerFast:
    """Llama-3: BOS before every text, and an end of turn that is not the end-of-sequence token."""
    bos = "<|begin_of_text|>"
    specials = [bos, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_train(specials, bos=bos), bos_token=bos, eos_token="<|end_of_text|>", chat_template=LLAMA3
    )


@pytest.fixture(scope="session")
def with_template(chatml: PreTrainedTokenizerFast) -> Callable[[str | None], PreTrainedTokenizerFast]:
    """Return the ChatML tokenizer under another chat template."""

    def build(template: str | None) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=chatml.backend_tokenizer, eos_token="<|im_end|>", chat_template=template
        )

    return build


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama-2-like: a space is put before every text, so pieces tokenized alone would gain spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

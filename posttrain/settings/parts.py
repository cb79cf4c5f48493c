"""Tables that several stages have: the model, the rows, the sampling, the engine.

Floor 0.
"""

from typing import Annotated, Literal

from pydantic import Field

from posttrain.settings.base import Count, Fraction, NonNegative, Settings


class ModelSettings(Settings):
    """Which model to load, in which precision, and which of its weights to train."""

    name_or_path: str = "nano"
    """A directory in the Hugging Face layout, a PEFT adapter folder, a Hub name, or "nano", the embedded base."""
    revision: str | None = None
    """Commit, tag or branch on the Hub; None takes the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; "auto" takes bfloat16 where the device multiplies it fast. Frozen weights have it
    too, or bfloat16 where their files do."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; "auto" takes cuda, then mps, then cpu."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""
    layout: Literal["tree", "rows"] = "tree"
    """How completions are laid out: prompt computed once per tree, or one padded row for each completion."""
    load_in_4bit: bool = False
    """Keep the frozen base in 4 bits (NF4, double quantisation) under the adapter: QLoRA; needs bitsandbytes."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_r: Annotated[int, Field(ge=0)] = 0
    """Rank of the LoRA adapter; 0 trains every weight."""
    lora_alpha: Count = 32
    """LoRA scale: updates are multiplied by lora_alpha / lora_r."""
    lora_dropout: Fraction = 0.0
    """Dropout on the adapter's input; above 0 it makes old and new log-probs differ, so policy stages refuse it."""
    lora_target_modules: str | list[str] = "all-linear"
    """Names of the modules that get an adapter, or "all-linear"."""


class FilterSettings(Settings):
    """Which rows to leave out for their quality; by default none. Plain text counts as a completion."""

    min_prompt_characters: Annotated[int, Field(ge=0)] = 0
    """Leave out rows with a shorter prompt."""
    max_prompt_characters: Count | None = None
    """Leave out rows with a longer prompt; None keeps all."""
    min_completion_characters: Annotated[int, Field(ge=0)] = 0
    """Leave out rows with a shorter completion; of a pair, either one."""
    max_completion_characters: Count | None = None
    """Leave out rows with a longer completion; of a pair, either one. None keeps all."""
    refusals: bool = False
    """Leave out rows whose completion (of a pair, chosen) declines to answer: "I'm sorry, but I can't help you"."""
    languages: list[str] = []
    """Leave out rows in none of these languages (ISO 639-1: en, de, ...); empty keeps all."""
    min_language_probability: Fraction = 0.001
    """Leave out a row where its languages together are less likely than this."""
    duplicates: bool = False
    """Leave out rows whose prompt and completions repeat an earlier row's but for case and white space."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=0.95)] | None = None
    """Leave out rows whose prompt and completions are this similar to an earlier row's (Jaccard; 0.7 is usual)."""


class DataSettings(Settings):
    """Which rows to read and how to turn them into prompts."""

    source: str = "nano"
    """A named source (nano, gsm8k, math, ...), or the path of a JSONL (.gz too), JSON, CSV, Parquet or Arrow file."""
    path: str | None = None
    """Local file or directory to read a named source from, instead of the Hub."""
    split: str = "train"
    """Split of the source: train, validation or test."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the prompts of a source with one split that "test" (or "validation") names; "train" names the others."""
    rows: Count | None = None
    """Read only this many rows (the first ones, after filters); None reads all."""
    prompt_style: str | None = None
    """How a question becomes a prompt (r1_zero, boxed, question, chat, ...); None takes the source's own."""
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    """Worked examples before each prompt, of the train split; the seed says which (MMLU: the first of the subject)."""
    columns: dict[str, str] = {}
    """Renames columns: {prompt = "question"} reads the prompt from the column question."""
    max_length: Count = 2048
    """Rows with more prompt + completion tokens than this are dropped and counted."""
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    """How many malformed rows to drop before refusing the file."""
    filters: FilterSettings = FilterSettings()


class SamplingSettings(Settings):
    """How an engine samples completions."""

    temperature: NonNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: Fraction = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    max_completion_length: Count = 256
    """Token limit of a completion; one that reaches it is truncated."""
    stop: list[str] = []
    """Strings that end a completion."""


class EngineSettings(Settings):
    """Which engine generates, and how much it holds at a time."""

    name: Literal["native"] = "native"
    """The engine; native runs wherever torch runs."""
    max_sequences: Count = 256
    """Completions decoded side by side; the others wait and enter as these finish."""

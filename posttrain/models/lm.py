"""Language models: loading and saving them, in the Hugging Face layout or as peft adapter folders.

Floor 1: the one place that decides which weights are trained, in which precision, with which attention.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jinja2 import TemplateError
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.errors import ModelError
from posttrain.hub import work_offline_if_unreachable
from posttrain.models.compiled_layers import compile_layers
from posttrain.models.devices import keep_freed_memory, resolve_device, resolve_dtype
from posttrain.models.files import HEAD, base_of_adapter, is_adapter, locate, refuse_classifier, require_classifier
from posttrain.models.frozen import keep_stored_weights
from posttrain.models.logprobs import Model, plain_model
from posttrain.models.lora import POLICY_ADAPTER, REFERENCE_ADAPTER, add_lora, check_adapters, folded_weights
from posttrain.models.lora_linear import fuse_adapters
from posttrain.models.quantized import leave_file, quantization_options
from posttrain.models.score_heads import check_head, expect_head, saved_head
from posttrain.models.stored import frozen_dtype, restore_buffers
from posttrain.models.support import prepare_attention
from posttrain.seeds import derive_seed
from posttrain.settings import ModelSettings

Result = TypeVar("Result")
AutoClass = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model with what belongs to it."""

    model: Model
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype  # of matrix products; weights trained in full are float32 whatever it is
    eos_ids: frozenset[int]  # every id that ends a completion, never empty
    pad_id: int
    layout: Literal["tree", "rows"]  # for `data.trees.build_batch`: rows where the architecture doesn't do trees

    def fit(self, max_length: int) -> int:
        """Return `max_length`, or the model's context where that is shorter, in tokens."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(max_length, context or max_length)


def load_model(settings: ModelSettings, *, seed: int, trainable: bool = True) -> LoadedModel:
    """Load a model with its tokenizer, dropout off, on its device.

    With `lora_r` 0 every weight is trained, kept in float32 and multiplied in `dtype`; with an adapter, the base is
    frozen in `dtype`, or as it is stored where that is bfloat16 or wanted in 4 bits, and the adapter is float32. An
    adapter folder continues its adapter, with a frozen
    copy of it as reference. `seed` sets the fresh adapter. Raises ModelError for whatever cannot be loaded as it is.
    """
    refuse_classifier(settings.name_or_path)
    return _load(settings, AutoModelForCausalLM, seed=seed, trainable=trainable)


def load_reward_model(settings: ModelSettings) -> LoadedModel:
    """Load a saved reward model, frozen, with its tokenizer; its score head is the plain model's `score`, in float32.

    It is a sequence classification model with one label, or an adapter with such a head on its base. Raises ModelError
    for whatever is none or cannot be loaded as it is.
    """
    require_classifier(settings.name_or_path)
    loaded = _load(settings, AutoModelForSequenceClassification, seed=0, trainable=False)
    check_head(plain_model(loaded.model), settings.name_or_path)
    return loaded


def _load(settings: ModelSettings, auto_class: AutoClass, *, seed: int, trainable: bool) -> LoadedModel:
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    if device.type == "cpu":
        keep_freed_memory()
    adapter, base = _adapter_and_base(settings.name_or_path)
    full = trainable and adapter is None and settings.lora_r == 0
    if full and settings.load_in_4bit:
        raise ModelError("load_in_4bit trains an adapter on frozen weights, and lora_r is 0", fix="model.lora_r = 16")
    config = _load_config(base, settings)
    lacking: set[str] = set()
    if auto_class is AutoModelForSequenceClassification:
        lacking = expect_head(config, from_adapter=adapter is not None)
    stored = torch.float32 if full else frozen_dtype(base, settings.revision, dtype, device)
    plain = _load_plain(base, config, settings, stored, dtype, device, auto_class, lacking=lacking)
    plain.compute_dtype = dtype  # type: ignore[assignment]
    nn.Module.to(plain, device)
    if not full:
        keep_stored_weights(plain, dtype)
    tokenizer = _load_tokenizer(adapter, base, settings)
    _check_vocabulary(plain, tokenizer)
    layout = prepare_attention(plain, settings.layout)
    compile_layers(plain)
    if settings.gradient_checkpointing and trainable:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = _with_adapter(plain, adapter, settings, seed=seed, trainable=trainable)
    if not trainable:
        model.requires_grad_(False)
    eos_ids = _eos_ids(plain, tokenizer)
    return LoadedModel(
        model=model.train(trainable),
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        eos_ids=eos_ids,
        pad_id=min(eos_ids) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id),
        layout=layout,
    )


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `load_model` would return, without its model."""
    adapter, base = _adapter_and_base(settings.name_or_path)
    return _load_tokenizer(adapter, base, settings)


def _adapter_and_base(name: str) -> tuple[Path | None, str]:
    """Return the adapter folder, None where the name is a whole model's, and the name of the base."""
    directory = locate(name)
    if directory is None or not is_adapter(directory):
        return None, name
    return directory, base_of_adapter(directory)


def _load_config(name: str, settings: ModelSettings) -> PretrainedConfig:
    directory = locate(name)
    revision = {"revision": settings.revision} if directory is None and settings.revision else {}
    config = _from_pretrained(AutoConfig.from_pretrained, str(directory or name), directory, **revision)
    assert isinstance(config, PretrainedConfig)
    _zero_dropout(config)
    return config


def _load_plain(
    name: str,
    config: PretrainedConfig,
    settings: ModelSettings,
    stored: torch.dtype,
    dtype: torch.dtype,
    device: torch.device,
    auto_class: AutoClass,
    *,
    lacking: Set[str],
) -> PreTrainedModel:
    """Load a whole model, all weights of which must be there but those that it may be lacking."""
    directory = locate(name)
    source = str(directory or name)
    options: dict[str, Any] = {"revision": settings.revision} if directory is None and settings.revision else {}
    options |= quantization_options(config, source, dtype, device, wanted=settings.load_in_4bit)
    with _load_report_off():
        loaded: Any = _from_pretrained(
            auto_class.from_pretrained,
            source,
            directory,
            config=config,
            dtype=dtype if settings.load_in_4bit else stored,  # of which bitsandbytes makes its 4 bits
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"] - lacking) + sorted(str(key) for key in info["mismatched_keys"]):
        some = ", ".join(missing[:3])
        raise ModelError(f"{source}: {len(missing)} weights are missing or of another shape than the config's: {some}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if settings.load_in_4bit:
        leave_file(model, stored)
    elif stored != dtype:
        restore_buffers(model, config)
    return model


@contextmanager
def _load_report_off() -> Iterator[None]:
    """Keep transformers' table of missing weights off the terminal: what matters of it is an error here.

    By a filter: at a higher level than warnings transformers would tell of tensor parallelism.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _from_pretrained(load: Callable[..., Result], source: str, directory: Path | None, **options: Any) -> Result:
    """Call one of transformers' loaders without remote code, and put what it raises into one line."""
    if directory is None:
        work_offline_if_unreachable()
    try:
        return load(source, trust_remote_code=False, **options)
    except Exception as error:  # transformers, safetensors, tokenizers and the Hub client raise a dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if directory is not None:
            raise ModelError(f"{source} cannot be loaded: {reason}") from error
        fix = f'hf download {source} --local-dir models/{source}  # then name_or_path = "models/{source}"'
        raise ModelError(f"{source} cannot be loaded from the Hub: {reason}", fix=fix) from error


def _zero_dropout(config: PretrainedConfig) -> None:
    """Set every dropout rate of a config to 0: some are read at each forward and are no module."""
    for part in {id(config): config, id(config.get_text_config()): config.get_text_config()}.values():
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(part, name, 0.0)


def _load_tokenizer(adapter: Path | None, base: str, settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the adapter folder where it has one, else the base's, with the template of the settings."""
    directory = locate(base)
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        directory = adapter
    source = str(directory or base)
    revision = {"revision": settings.revision} if directory is None and settings.revision else {}
    tokenizer = _from_pretrained(AutoTokenizer.from_pretrained, source, directory, **revision)
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(f"chat_template {settings.chat_template} cannot be read: {error}") from error
    return tokenizer


def _check_vocabulary(plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = plain.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}: they don't belong together"
        )


def _eos_ids(plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the end-of-sequence ids of generation config, config, tokenizer and chat template together."""
    config = getattr(plain, "generation_config", None)  # a classification model has none
    generation = None if config is None else config.eos_token_id
    ids = set(_turn_end_ids(tokenizer))
    for found in (generation, plain.config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        ids.update(found if isinstance(found, list | tuple) else () if found is None else (found,))
    if not ids:
        raise ModelError(
            "the model has no end-of-sequence id, so completions would never end",
            fix='"eos_token": "<|endoftext|>"  # in tokenizer_config.json, with a token of the vocabulary',
        )
    return frozenset(ids)


def _turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special id that the chat template ends an assistant turn with; none where it has no such id.

    Base models often ship a template that ends turns with another id than their end of sequence.
    """
    if tokenizer.chat_template is None:
        return []
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # such a template is refused where rows meet it
        return []
    after = tokenizer(str(text).rpartition("reply")[2], add_special_tokens=False)["input_ids"]
    return [token for token in after if token in tokenizer.added_tokens_decoder][:1]


def _with_adapter(
    plain: PreTrainedModel, adapter: Path | None, settings: ModelSettings, *, seed: int, trainable: bool
) -> Model:
    if adapter is not None:
        return _continued_adapter(plain, adapter, settings, trainable=trainable)
    if settings.lora_r == 0 or not trainable:
        return plain
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        return add_lora(plain, settings)


def _continued_adapter(plain: PreTrainedModel, adapter: Path, settings: ModelSettings, *, trainable: bool) -> PeftModel:
    head = saved_head(adapter) if hasattr(plain, HEAD) else None
    try:
        model = PeftModel.from_pretrained(plain, str(adapter), adapter_name=POLICY_ADAPTER, is_trainable=trainable)
        if trainable:
            model.load_adapter(str(adapter), adapter_name=REFERENCE_ADAPTER, is_trainable=False)
    except Exception as error:  # peft raises whatever torch, safetensors and json do
        raise ModelError(f"adapter {adapter} cannot be loaded: {str(error).splitlines()[0]}") from error
    if head is not None:  # in the place of peft's wrapper, whose copy has the base's precision
        setattr(plain, HEAD, head.to(plain.device))
    check_adapters(model)
    fuse_adapters(model)
    _set_adapter_dropout(model, settings.lora_dropout)
    rank = model.peft_config[POLICY_ADAPTER].r  # type: ignore[attr-defined]
    if trainable and settings.lora_r not in (0, rank):
        raise ModelError(
            f"lora_r = {settings.lora_r}, and the adapter {adapter} has rank {rank}", fix=f"lora_r = {rank}"
        )
    return model


def _set_adapter_dropout(model: PeftModel, rate: float) -> None:
    """Replace the dropout that a saved adapter brings by the settings' own, and by none on the reference."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                trained = rate > 0 and name == POLICY_ADAPTER
                module.lora_dropout[name] = nn.Dropout(rate) if trained else nn.Identity()


def save_model(loaded: LoadedModel, directory: Path | str) -> None:
    """Write what was trained: the whole model, or the adapter that peft loads; and the tokenizer with its template.

    Weights keep the precision they are trained in. Making the write atomic is the caller's part. Beside an adapter
    stands a generation config with its end ids: the base's own may lack the id that ends a turn. transformers reads
    it on request (`GenerationConfig.from_pretrained(directory)`), vLLM with `--generation-config directory`.
    """
    if isinstance(loaded.model, PeftModel):
        # "auto" would ask the Hub whether the base's vocabulary has grown.
        loaded.model.save_pretrained(str(directory), selected_adapters=[POLICY_ADAPTER], save_embedding_layers=False)
        _generation_config(plain_model(loaded.model), loaded).save_pretrained(str(directory))
    else:
        _save_plain(loaded.model, loaded, directory)
    loaded.tokenizer.save_pretrained(str(directory))


def export_merged(loaded: LoadedModel, directory: Path | str) -> None:
    """Write a plain model in `dtype`, adapters folded in, that AutoModelForCausalLM loads; and the tokenizer.

    Raises ModelError for a base in 4 bits: what it would write is the rounded base.
    """
    plain = plain_model(loaded.model)
    if hasattr(plain.config, "quantization_config"):
        raise ModelError("an adapter is merged into the base as it was, not out of 4 bits", fix="load_in_4bit = false")
    with torch.device("meta"):
        merged = type(plain)(copy.deepcopy(plain.config))
    weights = {name: tensor.to(loaded.dtype) for name, tensor in folded_weights(loaded.model)}
    unknown = merged.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    assert not unknown, f"folding gave weights that {type(plain).__name__} has not: {unknown}"
    merged.tie_weights()
    assert not any(parameter.is_meta for parameter in merged.parameters()), "folding left weights out"
    merged.config.dtype = loaded.dtype
    merged.generation_config = plain.generation_config
    _save_plain(merged, loaded, directory)
    loaded.tokenizer.save_pretrained(str(directory))


def _save_plain(model: PreTrainedModel, loaded: LoadedModel, directory: Path | str) -> None:
    model.generation_config = _generation_config(model, loaded)
    model.save_pretrained(str(directory))


def _generation_config(plain: PreTrainedModel, loaded: LoadedModel) -> GenerationConfig:
    """Return the model's generation config with all its end ids, or a bare one where transformers would not save it."""
    config = GenerationConfig() if plain.generation_config is None else copy.deepcopy(plain.generation_config)
    config.eos_token_id = sorted(loaded.eos_ids)
    try:
        config.validate(strict=True)
    except ValueError:  # published ones may contradict themselves: a temperature without sampling
        config = GenerationConfig(eos_token_id=sorted(loaded.eos_ids), pad_token_id=loaded.pad_id)
    return config

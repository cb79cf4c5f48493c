"""The score head of a reward model: one number for each completion, read at its last token.

Floor 1. The head stands on the transformer's body inside the causal model that `load_model` gives, so that prompt
trees, adapters and checkpoints work as for a policy; the vocabulary head is never computed. What is saved is a
sequence classification model with one label, or its adapter, which transformers and peft load.
"""

import copy
import logging
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.files import ADAPTER_WEIGHTS, HEAD, SAVED_HEAD
from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import Model, TokenBatch, batch_hidden_states, plain_model
from posttrain.models.lora import POLICY_ADAPTER
from posttrain.seeds import derive_seed

logger = logging.getLogger(__name__)


def add_score_head(loaded: LoadedModel, *, seed: int) -> None:
    """Put a trainable score head, in float32, on the model; its vocabulary head is frozen where it is separate.

    Weights are drawn with the standard deviation 1 / sqrt(E + 1) (Stiennon et al. 2020, arXiv 2009.01325), so that
    first scores are near 1 in size. Raises ModelError for an architecture that transformers cannot classify with.
    """
    plain = plain_model(loaded.model)
    if type(plain.config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(f"transformers has no sequence classification model for {type(plain).__name__}")
    size = plain.config.get_text_config().hidden_size
    head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(derive_seed(seed, "score-head"))
    nn.init.normal_(head.weight, std=1 / math.sqrt(size + 1), generator=generator)
    plain.add_module(HEAD, head.to(loaded.device))
    freeze_vocabulary_head(plain)


def freeze_vocabulary_head(plain: PreTrainedModel) -> None:
    """Freeze a vocabulary head that stands apart from the embeddings: no score and no value depends on it."""
    vocabulary = plain.get_output_embeddings()
    if vocabulary is not None and vocabulary.weight is not plain.get_input_embeddings().weight:
        vocabulary.requires_grad_(False)


def completion_scores(model: Model, batch: TokenBatch) -> Tensor:
    """Return the score `(B,)` of every branch in float32, read at its last token.

    Raises ModelError for a tree batch on a model whose attention is its own.
    """
    transformer = plain_model(model)
    last = torch.tensor([start + length - 1 for start, length in batch.branch_spans], device=transformer.device)
    of_last = batch_hidden_states(transformer, batch).index_select(0, last)  # (B, E)
    return F.linear(of_last.float(), transformer.get_submodule(HEAD).weight).squeeze(-1)  # type: ignore[arg-type]


def save_reward_model(loaded: LoadedModel, directory: Path | str) -> None:
    """Write a model for AutoModelForSequenceClassification, or the adapter and head that peft puts on its base.

    transformers scores the last token that is no padding, so config and tokenizer get a padding token that ends no
    completion. An adapter has no config of its own: `AutoModelForSequenceClassification.from_pretrained(folder,
    num_labels=1, pad_token_id=tokenizer.pad_token_id)` finds its base, or PeftModel puts it on one loaded like that.
    """
    plain = plain_model(loaded.model)
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.padding_side = "right"
    pad_id = scoring_pad_id(loaded)
    if pad_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    if isinstance(loaded.model, PeftModel):
        _save_adapter(loaded.model, directory)
    else:
        classifier, weights = _classifier(plain, pad_id), plain.state_dict()
        classifier.load_state_dict({name: weights[name] for name in classifier.state_dict()}, assign=True)
        classifier.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def scoring_pad_id(loaded: LoadedModel) -> int | None:
    """Return a special token to pad with that ends no completion; None, with a notice, where there is none.

    Without one transformers refuses to score several rows at a time; with the end token it would score the one before.
    """
    tokenizer = loaded.tokenizer
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    candidates += sorted(tokenizer.added_tokens_decoder)
    found = next((token for token in candidates if token is not None and token not in loaded.eos_ids), None)
    if found is None:
        logger.warning("the tokenizer has no token to pad with but its end token: score saved models row by row")
    return found


def _classifier(plain: PreTrainedModel, pad_id: int | None) -> PreTrainedModel:
    """Return the classification model of the same architecture, without memory for its weights."""
    config: PretrainedConfig = copy.deepcopy(plain.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = pad_id
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    assert isinstance(classifier, PreTrainedModel)
    return classifier


def _save_adapter(model: PeftModel, directory: Path | str) -> None:
    """Write the adapter as peft would write that of a classification model with a trained head."""
    config = copy.deepcopy(model.peft_config[POLICY_ADAPTER])
    assert isinstance(config, LoraConfig)
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", [HEAD], True
    config.save_pretrained(str(directory))
    weights = get_peft_model_state_dict(model, adapter_name=POLICY_ADAPTER, save_embedding_layers=False)
    weights[SAVED_HEAD] = plain_model(model).get_submodule(HEAD).weight
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, Path(directory) / ADAPTER_WEIGHTS, metadata={"format": "pt"})

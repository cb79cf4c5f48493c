"""Pre-training of the nano base from scratch: a tokenizer, a small Llama, two phases of a weighted corpus.

Floor 5. The documents of a step are derived from the seed and the step, so a resumed run reads the same ones. A
document is a tree whose prompt is its first token: packed documents never see one another.
"""

from dataclasses import replace
from itertools import islice

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from posttrain.models.devices import resolve_device, resolve_dtype
from posttrain.models.lm import LoadedModel, export_merged
from posttrain.models.support import prepare_attention
from posttrain.nano.corpus import BLEND, MID_TRAINING_BLEND, documents
from posttrain.nano.tokenizer import train_tokenizer
from posttrain.records import Branch, TokenTree
from posttrain.runs.directory import StageRun
from posttrain.seeds import derive_seed
from posttrain.settings import PretrainSettings
from posttrain.stages.checks import check_settings
from posttrain.stages.optimize import Updater, token_mean_loss, trained_tokens

TOKENIZER_DOCUMENTS = 8000


def pretrain(settings: PretrainSettings, run: StageRun) -> None:
    """Train a base model from nothing and publish it, in bfloat16, as the run's artifact."""
    check_settings(settings)
    blend = settings.blend or BLEND
    mid_training_blend = settings.mid_training_blend or MID_TRAINING_BLEND
    sample = documents(mid_training_blend, seed=derive_seed(settings.seed, "tokenizer"))
    tokenizer = train_tokenizer(islice(sample, TOKENIZER_DOCUMENTS), settings.vocab_size, settings.context_length)
    loaded = fresh_llama(settings, tokenizer)
    updater = Updater(loaded, settings, num_updates=settings.max_steps)
    progress = {"num_tokens": 0}
    if run.checkpoint:
        updater.restore(run.checkpoint)
        progress = dict(run.checkpoint.state["progress"])
    for step in run.steps(settings.max_steps):
        first_phase = step <= settings.max_steps * (1 - settings.mid_training_fraction)
        texts = documents(
            blend if first_phase else mid_training_blend, seed=derive_seed(settings.seed, "documents", step)
        )
        trees = [document_tree(text, tokenizer) for text in islice(texts, settings.documents_per_step)]
        with run.phase("update"):
            metrics = updater.update(trees, token_mean_loss(trees))
        progress["num_tokens"] += trained_tokens(trees)
        run.log(step, metrics | progress)
        run.save(step, lambda: updater.state({"progress": progress}))
    run.publish_artifact(lambda directory: export_merged(replace(loaded, dtype=torch.bfloat16), directory))
    run.finish({"steps": settings.max_steps, **progress})


def document_tree(text: str, tokenizer: PreTrainedTokenizerBase) -> TokenTree:
    """Return a document as a tree: its first token, then the rest and the end token to learn."""
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    return TokenTree((ids[0],), (Branch(tuple(ids[1:]), (1,) * (len(ids) - 1)),))


def fresh_llama(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Return a randomly initialised Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    device = resolve_device(settings.model.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, "weights"))
        model = LlamaForCausalLM(config)
    model.to(device)  # type: ignore[arg-type]
    dtype = resolve_dtype(settings.model.dtype, device)
    model.compute_dtype = dtype  # type: ignore[assignment]
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None
    return LoadedModel(
        model=model.train(),
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        eos_ids=frozenset({tokenizer.eos_token_id}),
        pad_id=tokenizer.pad_token_id,
        layout=prepare_attention(model, settings.model.layout),
    )

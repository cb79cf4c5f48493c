"""A two-layer Llama with the nano tokenizer on disk, and stages run in a temporary directory."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.nano.corpus import MID_TRAINING_BLEND, documents
from posttrain.nano.tokenizer import train_tokenizer
from posttrain.runs.directory import StageRun
from posttrain.runs.display import make_display
from posttrain.settings import StageSettings
from posttrain.stages import pretrain


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(islice(documents(MID_TRAINING_BLEND, seed=0), 300), 400, 1024)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(autouse=True)
def small_tokenizer_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "TOKENIZER_DOCUMENTS", 200)


class Killed(BaseException):
    """Ends a stage the way a kill does: nothing of ours handles it."""


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[..., StageRun]:
    """Return a function that runs a stage in its own directory; `kill_after` a step, it dies with that step logged."""

    def run(
        stage: Callable[[Any, StageRun], None], settings: StageSettings, name: str, kill_after: int | None = None
    ) -> StageRun:
        with StageRun.open(
            tmp_path / name, settings=settings, fingerprint="test", display=make_display("none")
        ) as stage_run:
            if kill_after is None:
                stage(settings, stage_run)
                return stage_run
            log = stage_run.log

            def log_then_die(step: int, *arguments: Any, **options: Any) -> None:
                log(step, *arguments, **options)
                if step == kill_after:
                    raise Killed

            stage_run.log = log_then_die  # type: ignore[method-assign]
            with pytest.raises(Killed):
                stage(settings, stage_run)
        return stage_run

    return run

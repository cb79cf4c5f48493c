"""A two-layer Llama with the nano tokenizer on disk, stages run in a temporary directory, and what they left there."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from posttrain.runs.directory import StageRun
from posttrain.runs.display import make_display
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, ModelSettings, StageSettings
from posttrain.stages import pretrain
from tests.conftest import write_rows

RunStage = Callable[..., StageRun]


@pytest.fixture(scope="session")
def model_directory(save_model: Callable[..., str], nano_tokenizer: PreTrainedTokenizerFast) -> str:
    return save_model("llama", nano_tokenizer, tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def small_tokenizer_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "TOKENIZER_DOCUMENTS", 200)


class Killed(BaseException):
    """Ends a stage the way a kill does: nothing of ours handles it."""


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
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


def model_settings(directory: str, **options: Any) -> ModelSettings:
    return ModelSettings(name_or_path=directory, dtype="float32", device="cpu", **options)


def rows_of(path: Path, rows: Iterable[Mapping[str, Any]]) -> DataSettings:
    """Write rows to a file and return the settings that read it."""
    return DataSettings(source=write_rows(path, rows))


def noise_pairs(path: Path, count: int) -> DataSettings:
    """Write pairs of numbers of which nothing tells the better one."""
    rows = [
        {"prompt": f"Say {n}.", "chosen": f" {n * 7919 % 1000}", "rejected": f" {n * 104729 % 997}"}
        for n in range(count)
    ]
    return rows_of(path, rows)


def metrics(run: StageRun) -> list[dict[str, Any]]:
    """Return the metrics of each step, without the times it took."""
    rows = read_rows(run.path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name.partition("/")[0] != "time"} for row in rows]


def result(run: StageRun) -> dict[str, Any]:
    return json.loads((run.path / "result.json").read_text())["summary"]


def weights(run: StageRun) -> dict[str, torch.Tensor]:
    return load_file(next(run.artifact.glob("*.safetensors")))


def run_whole_and_killed(
    run_stage: RunStage, stage: Callable[..., None], settings: StageSettings, *, kills: tuple[int, ...] = (3,)
) -> StageRun:
    """Run a stage whole, and again killed after these steps and resumed; check that both end bit-identical."""
    whole = run_stage(stage, settings, "whole")
    for step in kills:
        run_stage(stage, settings, "killed", kill_after=step)
    resumed = run_stage(stage, settings, "killed")
    assert whole.finished
    assert resumed.finished
    assert metrics(resumed) == metrics(whole)
    assert result(resumed) == result(whole)
    expected, found = weights(whole), weights(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    return whole

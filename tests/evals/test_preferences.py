"""Held-out pairs: numbers by hand, against DPO's own forward, and as an evaluation."""

import json
from pathlib import Path

import pytest
import torch

from posttrain.algorithms.preferences import sequence_logprobs
from posttrain.data.pairs import render_preference
from posttrain.data.rows import Row
from posttrain.data.trees import build_batch
from posttrain.errors import ConfigError
from posttrain.evals.checks import check_settings
from posttrain.evals.evaluate import evaluate
from posttrain.evals.preferences import compare_pair, summarise_preferences
from posttrain.evals.references import Distance
from posttrain.models.lm import load_model
from posttrain.models.logprobs import completion_logprobs
from posttrain.records import Branch, TokenTree
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import DataSettings, EvalSettings, ModelSettings, SamplingSettings

ROW = Row("a", "preference", "pairs:1", prompt="2 + 2 =", chosen=" 4", rejected=" five")
TREE = TokenTree((1, 2), (Branch((3,), (1,)), Branch((4, 5, 6), (1, 1, 1))))


def test_a_reference_takes_its_share() -> None:
    chosen, rejected = Distance(-3.0, -5.0, 0.1), Distance(-2.0, -2.5, 0.1)
    alone = compare_pair(ROW, TREE, chosen, rejected, measured=False)
    assert (alone.score, alone.further["margin"]) == (0.0, -1.0)
    assert alone.further["by_token"] == 0.0  # -3 a token against -2/3
    measured = compare_pair(ROW, TREE, chosen, rejected, measured=True)
    assert (measured.score, measured.further["margin"]) == (1.0, 1.5)
    assert (measured.completion, measured.num_tokens) == (" 4", 1)


def test_the_summary_says_how_choices_hang_on_length() -> None:
    better, worse = Distance(-1.0, 0.0, 0.1), Distance(-9.0, 0.0, 0.1)
    rows = [
        compare_pair(Row(str(i), "preference", "p", prompt="q", chosen="c", rejected="r"), TREE, *pair, measured=False)
        for i, pair in enumerate([(better, worse)] * 3 + [(worse, better)])
    ]
    found = summarise_preferences([row.row() for row in rows])
    assert found["results"]["rewards/accuracies,none"] == 0.75
    assert found["results"]["rewards/margins,none"] == pytest.approx((3 * 8 - 8) / 4)
    assert found["pairs"]["longer_chosen"] == 0.0
    assert found["pairs"]["prefers_longer"] == 0.25


@pytest.fixture
def settings(tmp_path: Path) -> EvalSettings:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"User: {i} + 1?\nAssistant:", "chosen": f" {i + 1}", "rejected": f" {i} and so on"}
        for i in range(6)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalSettings(
        task="preferences",
        model=ModelSettings(dtype="float32", device="cpu"),
        data=DataSettings(source=str(pairs)),
    )


def run(path: Path, settings: EvalSettings) -> tuple[list[dict], dict]:
    with StageRun.open(path, settings=settings, fingerprint="f", display=NoDisplay()) as opened:
        evaluate(settings, opened)
    artifact = path / "artifact"
    return read_rollouts(artifact / "samples.parquet"), json.loads((artifact / "summary.json").read_bytes())


def test_the_log_probs_are_those_that_dpo_trains_on(settings: EvalSettings, tmp_path: Path) -> None:
    rows, summary = run(tmp_path / "eval", settings)
    loaded = load_model(settings.model, seed=0, trainable=False)
    for row in rows:
        pair = Row("x", "preference", "p", prompt=row["prompt"], chosen=row["gold"], rejected=row["rejected_text"])
        batch = build_batch([render_preference(pair, loaded.tokenizer)], layout=loaded.layout, pad_id=loaded.pad_id)
        with torch.no_grad():
            logprobs = completion_logprobs(loaded.model, batch).logprobs
        wanted = sequence_logprobs(logprobs, batch.completion_mask)[0].tolist()
        assert [row["chosen"], row["rejected"]] == pytest.approx(wanted, rel=1e-5)
    assert summary["scorer"] == {"score": "log-prob"}
    assert summary["problems"] == 6


def test_a_model_measured_against_itself_has_no_margin(settings: EvalSettings, tmp_path: Path) -> None:
    rows, summary = run(tmp_path / "eval", settings.model_copy(update={"reference": "nano"}))
    assert {row["margin"] for row in rows} == {0.0}
    assert summary["scorer"] == {"score": "implicit reward"}


def test_what_is_only_for_samples_is_refused(settings: EvalSettings) -> None:
    with pytest.raises(ConfigError, match="sampling has no meaning for task preferences"):
        check_settings(settings.model_copy(update={"sampling": SamplingSettings(temperature=1.0)}))
    check_settings(settings.model_copy(update={"reference": "nano"}))

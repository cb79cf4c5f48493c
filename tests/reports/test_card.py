"""A card holds what was measured, in the form that the Hub reads, and what was found wrong."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from posttrain.errors import ConfigError
from posttrain.pipeline.evaluations import write_model_card
from tests.reports.test_inputs import evaluation, run_of, stage


def test_a_card_has_results_lineage_and_failures(tmp_path: Path) -> None:
    run_of(tmp_path / "demo", 0, [True] * 30 + [False] * 10, data={"source": "gsm8k"})
    path = write_model_card(tmp_path / "demo" / "grpo", (), None, tmp_path / "card")
    card = ModelCard.load(path)
    (strict, lenient) = card.data.eval_results
    assert (strict.metric_type, strict.metric_value, strict.dataset_name) == ("exact_match", 0.75, "nano")
    assert strict.metric_name.startswith("strict accuracy (95% CI ")
    assert lenient.metric_name.startswith("lenient accuracy")
    assert card.data.datasets == ["openai/gsm8k"]
    assert card.data.tags == ["posttrain", "sft", "grpo"]
    assert "from `nano`: sft on its own corpus, then grpo on gsm8k. Seed 0." in card.text
    assert "| nano | strict accuracy | 75.0% (" in card.text
    assert "licence MIT" in card.text
    for figure in (tmp_path / "card" / "figures").iterdir():
        assert f"figures/{figure.name})" in card.text


def test_what_got_worse_is_a_known_failure(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    sft = stage(run / "sft", "sft")
    bad = stage(run / "bad", "grpo", model=str(sft))
    evaluation(run / "sft_eval", [True] * 40, model=sft)
    evaluation(run / "bad_eval", [True] * 10 + [False] * 30, model=bad)
    path = write_model_card(run / "bad", (), "sft_eval", tmp_path / "card")
    failures = path.read_text().split("## Known failures")[1].split("##")[0]
    assert "- bad is worse than sft: -75.0 points" in failures


def test_results_on_published_problems_get_their_file(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    sft = stage(run / "sft", "sft")
    evaluation(run / "sft_eval", [True, False] * 20, model=sft, summary={"task": "gsm8k"})
    write_model_card(run / "sft", (), None, tmp_path / "card")
    text = (tmp_path / "card" / ".eval_results" / "gsm8k.yaml").read_text()
    assert "id: openai/gsm8k" in text
    assert "value: 0.5" in text


def test_a_model_without_evaluations_is_told_how_to_get_one(tmp_path: Path) -> None:
    run_of(tmp_path / "demo", 0, [True, False])
    lone = stage(tmp_path / "other" / "sft", "sft").parent
    with pytest.raises(ConfigError, match=r"none of these evaluations is of the model of (?s:.)*posttrain eval"):
        write_model_card(lone, [tmp_path / "demo"], None, tmp_path / "card")

"""Reward modelling and DPO on a tiny model: they learn, resume, export, and do not depend on their micro-batches."""

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from posttrain.data.pairs import render_preference
from posttrain.data.sources import load_rows
from posttrain.data.trees import in_order
from posttrain.errors import ConfigError, DataError
from posttrain.models import logprobs
from posttrain.models.lm import load_model
from posttrain.models.scores import add_score_head, completion_scores, scoring_pad_id
from posttrain.nano.problems import Operation, Problem, apply, problems
from posttrain.nano.solutions import steps
from posttrain.runs.directory import StageRun
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, DpoSettings, RmSettings, SftSettings
from posttrain.stages import optimize
from posttrain.stages.dpo import FALL, FallWatch, dpo
from posttrain.stages.optimize import forward_all, steps_of_rows
from posttrain.stages.reference import Reference, evaluate_sequences
from posttrain.stages.rm import measure, rm
from posttrain.stages.sft import sft
from tests.stages.conftest import (
    RunStage,
    metrics,
    model_settings,
    noise_pairs,
    result,
    rows_of,
    run_whole_and_killed,
    weights,
)


def rm_settings(directory: str, **options: Any) -> RmSettings:
    model_options = {key: options.pop(key) for key in ("lora_r", "lora_dropout", "layout") if key in options}
    defaults: dict[str, Any] = {
        "model": model_settings(directory, **model_options),
        "data": DataSettings(source="nano_preferences", rows=20),
        "rows_per_step": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "center_rewards_coefficient": 0.01,
    }
    return RmSettings(**(defaults | options))


def dpo_settings(directory: str, **options: Any) -> DpoSettings:
    model_options = {key: options.pop(key) for key in ("lora_r", "layout") if key in options}
    defaults: dict[str, Any] = {
        "model": model_settings(directory, **model_options),
        "data": DataSettings(source="nano_preferences", rows=10),
        "rows_per_step": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "save_steps": 2,
    }
    return DpoSettings(**(defaults | options))


def judged_rows(path: Path) -> DataSettings:
    """Write completions with labels, undesirable ones for two in three."""
    lines = [
        {"prompt": f"User: {n} plus {n}?\nAssistant:", "completion": f" {2 * n + n % 3}", "label": n % 3 == 0}
        for n in range(12)
    ]
    return rows_of(path, lines)


# --- resume, micro-batches, layouts ----------------------------------------------------------------------------

STAGES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "rm": (rm, rm_settings),
    "rm with an adapter": (rm, lambda directory, **o: rm_settings(directory, lora_r=4, lora_dropout=0.2, **o)),
    "dpo": (dpo, dpo_settings),
    "dpo with an adapter": (dpo, lambda directory, **o: dpo_settings(directory, lora_r=4, **o)),
    "simpo": (dpo, lambda directory, **o: dpo_settings(directory, losses={"simpo": 1.0, "sft": 0.1}, **o)),
    "kto": (dpo, lambda directory, **o: dpo_settings(directory, losses={"kto": 1.0}, **o)),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_ends_bit_identical(model_directory: str, run_stage: RunStage, name: str) -> None:
    stage, make_settings = STAGES[name]
    run_whole_and_killed(run_stage, stage, make_settings(model_directory))


def test_the_test_above_sees_a_lost_score_head(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = rm_settings(model_directory, lora_r=4)
    whole = run_stage(rm, settings, "whole")
    run_stage(rm, settings, "killed", kill_after=3)
    restore = optimize.Updater.restore

    def forgetful(self: optimize.Updater, checkpoint: Any) -> None:
        before = {name: p.detach().clone() for name, p in self._trained.items() if "score" in name}
        assert len(before) == 1
        restore(self, checkpoint)
        with torch.no_grad():
            for name, value in before.items():
                self._trained[name].copy_(value)

    monkeypatch.setattr(optimize.Updater, "restore", forgetful)
    assert metrics(run_stage(rm, settings, "killed")) != metrics(whole)


@pytest.mark.parametrize("layout", ["tree", "rows"])
@pytest.mark.parametrize("name", ["rm", "dpo", "kto"])
def test_micro_batches_change_nothing(model_directory: str, run_stage: RunStage, name: str, layout: str) -> None:
    stage, make_settings = STAGES[name]
    found = []
    for budget in (8192, 300, 1):
        settings = make_settings(model_directory, layout=layout, max_tokens_per_micro_batch=budget, max_steps=2)
        settings = settings.model_copy(update={"learning_rate": 1e-3})
        found.append(metrics(run_stage(stage, settings, f"budget-{budget}")))
    for rows in found[1:]:
        for row, expected in zip(rows, found[0], strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_scores_of_trees_are_those_of_rows(model_directory: str) -> None:
    rows = load_rows(DataSettings(source="nano_concise", rows=5), seed=0)
    found = {}
    for layout in ("tree", "rows"):
        loaded = load_model(model_settings(model_directory, layout=layout), seed=0)
        add_score_head(loaded, seed=0)
        trees = [render_preference(row, loaded.tokenizer) for row in rows]
        passes = forward_all(loaded, trees, 400, completion_scores)
        found[layout] = torch.stack(in_order((micro_batch, scores) for micro_batch, _, scores in passes))
    torch.testing.assert_close(found["tree"], found["rows"], rtol=1e-4, atol=1e-5)
    assert len(found["tree"].unique()) == 10


def test_a_score_never_asks_for_the_vocabulary(model_directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(model_settings(model_directory), seed=0)
    add_score_head(loaded, seed=0)
    tree = render_preference(load_rows(DataSettings(source="nano_concise", rows=1), seed=0)[0], loaded.tokenizer)

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the vocabulary head was computed")

    monkeypatch.setattr(logprobs, "chunked_logprobs", forbidden)
    loaded.model.get_output_embeddings().forward = forbidden
    assert next(forward_all(loaded, [tree], 400, completion_scores))[2].shape == (2,)


# --- the reward model ------------------------------------------------------------------------------------------


def reloaded_scores(run: StageRun, base: str, texts: list[str]) -> torch.Tensor:
    """Score texts the way transformers and peft do, padded together, from the artifact alone."""
    tokenizer = AutoTokenizer.from_pretrained(run.artifact)
    load = AutoModelForSequenceClassification.from_pretrained
    if (run.artifact / "adapter_config.json").is_file():
        plain = load(base, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32)
        model = PeftModel.from_pretrained(plain, str(run.artifact))
    else:
        model = load(run.artifact, dtype=torch.float32)
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    with torch.no_grad():
        return model.eval()(**encoded).logits.squeeze(-1)


@pytest.mark.parametrize("lora_r", [0, 4])
def test_transformers_and_peft_give_equal_scores(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, lora_r: int
) -> None:
    ours: dict[str, Any] = {}

    def spied(loaded: Any, trees: Any, max_tokens: int) -> Any:
        texts = [loaded.tokenizer.decode([*tree.prompt_ids, *branch.ids]) for tree in trees for branch in tree.branches]
        passes = forward_all(loaded, trees, max_tokens, completion_scores)
        scores = in_order((micro_batch, scores.detach()) for micro_batch, _, scores in passes)
        ours.update(texts=texts, scores=torch.stack(scores))
        return measure(loaded, trees, max_tokens)

    monkeypatch.setattr("posttrain.stages.rm.measure", spied)
    run = run_stage(rm, rm_settings(model_directory, lora_r=lora_r, eval_fraction=0.3), "rm")
    found = reloaded_scores(run, model_directory, ours["texts"])
    torch.testing.assert_close(found, ours["scores"], rtol=1e-4, atol=1e-5)
    assert ours["scores"].std() > 1e-3
    if lora_r:
        config = json.loads((run.artifact / "adapter_config.json").read_text())
        assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
        assert "base_model.model.score.weight" in weights(run)


def test_an_end_token_never_pads(model_directory: str) -> None:
    loaded = load_model(model_settings(model_directory), seed=0)
    assert scoring_pad_id(loaded) == loaded.tokenizer.pad_token_id
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    assert scoring_pad_id(loaded) not in loaded.eos_ids


def test_a_reward_model_learns_to_prefer_the_concise_answer(model_directory: str, run_stage: RunStage) -> None:
    data = DataSettings(source="nano_concise", rows=120)
    settings = rm_settings(model_directory, data=data, rows_per_step=8, max_steps=30, eval_fraction=0.4)
    report = result(run_stage(rm, settings, "rm"))
    assert report["held_out_rows"] + report["rows"] == 120
    assert report["accuracy"] > 0.85
    assert report["accuracy_interval"][0] > 0.6
    assert report["longer_chosen"] == 0.0
    assert report["prefers_longer"] == pytest.approx(1 - report["accuracy"])
    assert report["verdict"].startswith("better than chance")


def test_a_reward_model_learns_to_tell_right_from_wrong(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    """The wrong solution adds where the question subtracts, or the other way round: the question has to be read."""

    def turned(problem: Problem) -> Problem:
        (step,) = problem.operations
        operator = {"+": "-", "-": "+"}[step.operator]
        wrong = Operation(step.left, operator, step.right, apply(operator, step.left, step.right))
        return Problem(problem.question, (wrong,))

    stream = (problem for problem in problems("train", seed=0, levels=(1,)) if problem.operations[0].operator in "+-")
    pairs = [
        {"prompt": f"User: {p.question}\nAssistant:", "chosen": f" {steps(p)}", "rejected": f" {steps(turned(p))}"}
        for p in islice((p for p in stream if p.operations[0].left > p.operations[0].right), 300)
    ]
    assert 100 < sum("+" in pair["chosen"] for pair in pairs) < 200
    data = rows_of(tmp_path / "pairs.jsonl", pairs)
    learn = {"rows_per_step": 16, "max_steps": 120, "learning_rate": 5e-3, "eval_fraction": 0.3, "save_steps": 200}
    report = result(run_stage(rm, rm_settings(model_directory, data=data, **learn), "rm"))
    assert report["pairs"] == 90
    assert report["accuracy_interval"][0] > 0.6


def test_a_reward_model_of_pure_noise_is_called_no_better_than_chance(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    data = noise_pairs(tmp_path / "noise.jsonl", 99)
    settings = rm_settings(model_directory, data=data, eval_fraction=0.5, learning_rate=1e-4)
    run = run_stage(rm, settings, "rm")
    assert result(run)["verdict"].startswith("no better than chance")
    events = read_rows(run.path / "events.jsonl")
    assert any("no better than chance" in event["text"] for event in events)


def test_a_margin_lowers_the_logits_of_its_pair(model_directory: str, run_stage: RunStage, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Say {n}.", "chosen": f" {n}", "rejected": f" not {n}"} for n in range(8)]
    losses = []
    for margin in (0.0, 5.0):
        data = rows_of(tmp_path / f"margin-{margin}.jsonl", [pair | {"margin": margin} for pair in pairs])
        settings = rm_settings(model_directory, data=data, max_steps=1, learning_rate=1e-6)
        losses.append(metrics(run_stage(rm, settings, f"margin-{margin}"))[0]["loss"])
    assert losses[1] > losses[0] + 3


def test_prompts_are_never_in_training_and_measurement(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    pairs = [{"prompt": f"Say {n % 3}.", "chosen": f" {n}", "rejected": f" not {n}"} for n in range(12)]
    run = run_stage(rm, rm_settings(model_directory, data=rows_of(tmp_path / "pairs.jsonl", pairs)), "rm")
    assert (result(run)["rows"], result(run)["held_out_rows"]) == (8, 4)
    data = rows_of(tmp_path / "one.jsonl", [pair | {"prompt": "Say."} for pair in pairs])
    with pytest.raises(DataError, match="measures on others, and there is 1"):
        run_stage(rm, rm_settings(model_directory, data=data), "one-prompt")


def test_turns_of_one_conversation_are_never_in_training_and_measurement(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    def pair(prompt: list[dict[str, str]], n: int) -> dict[str, Any]:
        replies = {name: [{"role": "assistant", "content": f"{name} {n}"}] for name in ("chosen", "rejected")}
        return {"prompt": prompt, **replies}

    pairs = []
    for n in range(3):
        turns = [{"role": "user", "content": f"Say {n}."}]
        pairs.append(pair(turns, n))
        turns = [*turns, {"role": "assistant", "content": "Why?"}, {"role": "user", "content": f"Do. {n}"}]
        pairs.append(pair(turns, n))
    run = run_stage(rm, rm_settings(model_directory, data=rows_of(tmp_path / "pairs.jsonl", pairs)), "rm")
    assert (result(run)["rows"], result(run)["held_out_rows"]) == (4, 2)


def test_overlong_pairs_are_dropped_and_counted(model_directory: str, run_stage: RunStage) -> None:
    data = DataSettings(source="nano_preferences", rows=20, max_length=110)
    report = result(run_stage(rm, rm_settings(model_directory, data=data, max_steps=1), "rm"))
    assert 0 < report["dropped_rows"] < 20
    assert report["rows"] + report["held_out_rows"] + report["dropped_rows"] == 20


# --- DPO -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_r", [0, 4])
def test_dpo_starts_at_ln_2_and_widens_the_margin(model_directory: str, run_stage: RunStage, lora_r: int) -> None:
    data, learning_rate = DataSettings(source="nano_concise", rows=10), 1e-2 if lora_r else 3e-3
    settings = dpo_settings(model_directory, lora_r=lora_r, data=data, max_steps=25, learning_rate=learning_rate)
    rows = metrics(run_stage(dpo, settings, "dpo"))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    last = [np.mean([row[name] for row in rows[-5:]]) for name in ("rewards/margins", "rewards/accuracies", "loss")]
    assert last[0] > 0.5
    assert last[1] > 0.8
    assert last[2] < 0.6


def test_dpo_publishes_what_transformers_loads(model_directory: str, run_stage: RunStage) -> None:
    run = run_stage(dpo, dpo_settings(model_directory), "dpo")
    AutoModelForCausalLM.from_pretrained(run.artifact)
    assert result(run) == {"rows": 10, "dropped_rows": 0, "steps": 6, "num_tokens": metrics(run)[-1]["num_tokens"]}


@pytest.mark.parametrize(
    "losses",
    [{name: 1.0} for name in ("sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "simpo", "orpo", "kto")]
    + [{"sigmoid": 1.0, "ipo": 0.5, "sft": 0.2}],
    ids=lambda losses: "+".join(losses),
)
def test_every_loss_trains(model_directory: str, run_stage: RunStage, losses: dict[str, float]) -> None:
    smoothing = 0.1 if "robust" in losses else 0.0
    settings = dpo_settings(model_directory, losses=losses, label_smoothing=smoothing, max_steps=12, learning_rate=3e-3)
    rows = metrics(run_stage(dpo, settings, "dpo"))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    if len(losses) > 1:
        parts = sum(weight * rows[0][f"loss/{name}"] for name, weight in losses.items())
        assert rows[0]["loss"] == pytest.approx(parts, rel=1e-5)


def test_label_smoothing_acts_on_the_sigmoid_loss(model_directory: str, run_stage: RunStage) -> None:
    found = []
    for smoothing in (0.0, 0.3):
        settings = dpo_settings(model_directory, label_smoothing=smoothing, max_steps=3, learning_rate=3e-3)
        found.append(metrics(run_stage(dpo, settings, f"smoothing-{smoothing}")))
    assert found[0][0]["grad_norm"] > 2 * found[1][0]["grad_norm"]  # 1 - 2e of it, at the start


def test_the_reference_stays_where_it_was(model_directory: str) -> None:
    rows = load_rows(DataSettings(source="nano_preferences", rows=4), seed=0)
    for lora_r in (0, 4):
        loaded = load_model(model_settings(model_directory, lora_r=lora_r), seed=0)
        trees = [render_preference(row, loaded.tokenizer) for row in rows]
        before = evaluate_sequences(loaded, trees, 4096)
        reference = Reference(loaded)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert torch.equal(reference.sequence_logprobs(trees, 4096), before)
        assert not torch.allclose(evaluate_sequences(loaded, trees, 4096), before)


def test_a_continued_adapter_is_its_own_reference(model_directory: str, run_stage: RunStage) -> None:
    first = run_stage(dpo, dpo_settings(model_directory, lora_r=4), "first")
    rows = metrics(run_stage(dpo, dpo_settings(str(first.artifact), max_steps=1), "second"))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    base = metrics(run_stage(dpo, dpo_settings(model_directory, lora_r=4, max_steps=1), "fresh"))
    assert rows[0]["ref_logps/chosen"] != pytest.approx(base[0]["ref_logps/chosen"], rel=1e-3)


def test_cached_reference_is_the_computed_one_and_knows_model_and_length(
    model_directory: str, run_stage: RunStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    computed = metrics(run_stage(dpo, dpo_settings(model_directory, lora_r=4), "computed"))
    cached_settings = dpo_settings(model_directory, lora_r=4, reference_cache=str(cache))
    cached = metrics(run_stage(dpo, cached_settings, "cached"))
    for row, expected in zip(cached, computed, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len(list(cache.iterdir())) == 1

    def forbidden(*arguments: Any) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.stages.reference.evaluate_sequences", forbidden)
        assert metrics(run_stage(dpo, cached_settings, "again")) == cached
    shorter = cached_settings.data.model_copy(update={"max_length": 120})
    run_stage(dpo, cached_settings.model_copy(update={"data": shorter}), "shorter")
    other = run_stage(dpo, dpo_settings(model_directory, lora_r=4), "other")
    run_stage(dpo, dpo_settings(str(other.artifact), reference_cache=str(cache)), "continued")
    assert len(list(cache.iterdir())) == 3
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert metrics(run_stage(dpo, cached_settings, "damaged")) == cached


def test_kto_learns_from_judged_completions(model_directory: str, run_stage: RunStage, tmp_path: Path) -> None:
    data = judged_rows(tmp_path / "judged.jsonl")
    settings = dpo_settings(model_directory, data=data, losses={"kto": 1.0}, max_steps=20, learning_rate=3e-3)
    rows = metrics(run_stage(dpo, settings, "kto"))
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["rewards/chosen"] > rows[-1]["rewards/rejected"]
    assert all(row["kl"] >= 0 for row in rows)
    with pytest.raises(DataError, match=r"dpo needs preference pairs .*; .* holds"):
        run_stage(dpo, settings.model_copy(update={"losses": {"sigmoid": 1.0}}), "pairs")


def test_both_falling_is_told_once_also_over_a_resume(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    """A policy that says the chosen completions by heart has nowhere to go but down."""
    rows = load_rows(DataSettings(source="nano_preferences", rows=10), seed=0)
    data = rows_of(tmp_path / "chosen.jsonl", [{"prompt": row.prompt, "completion": row.chosen} for row in rows])
    learn = {"data": data, "max_steps": 60, "rows_per_step": 10, "learning_rate": 1e-2}
    learned = run_stage(sft, SftSettings(model=model_settings(model_directory), **learn), "sft")
    settings = dpo_settings(str(learned.artifact), max_steps=12, learning_rate=1e-2, losses={"ipo": 1.0}, beta=0.05)
    run_stage(dpo, settings, "dpo", kill_after=9)
    run = run_stage(dpo, settings, "dpo")
    fell = [row for row in metrics(run) if row["rewards/chosen"] < 0 and row["rewards/rejected"] < 0]
    assert len(fell) > 5
    told = [event for event in read_rows(run.path / "events.jsonl") if event["event"] == "falling"]
    assert len(told) == 1


def test_fall_watch_by_hand() -> None:
    def step(chosen: float, rejected: float, **more: float) -> dict[str, float]:
        return {"logps/chosen": chosen, "logps/rejected": rejected, "lengths/chosen": 10, "lengths/rejected": 10} | more

    watch = FallWatch()
    reference = {"ref_logps/chosen": -10.0, "ref_logps/rejected": -20.0}
    assert not any(watch.notices(step(-9.0, -90.0, **reference)) for _ in range(20))  # chosen rises: as it should be
    assert [watch.notices(step(-30.0, -90.0, **reference)) for _ in range(3)].count(True) == 1
    watch = FallWatch()
    assert not watch.notices(step(-10.0, -20.0))
    assert watch.start == [-1.0, -2.0]
    assert [watch.notices(step(-10 - 30 * FALL, -20 - 30 * FALL)) for _ in range(5)].count(True) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {"sigmod": 1.0}}, "unknown loss sigmod"),
        ({"losses": {"sft": 1.0}}, "besides the sft term"),
        ({"losses": {"ipo": 1.0}, "label_smoothing": 0.1}, "label_smoothing acts on sigmoid, sigmoid_norm, robust"),
        ({"losses": {"kto": 1.0}, "rows_per_step": 1}, "has no other"),
        ({"losses": {"kto": 1.0}, "reference_cache": "cache"}, "nothing to keep"),
    ],
)
def test_settings_without_meaning_are_refused(
    model_directory: str, run_stage: RunStage, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage(dpo, dpo_settings(model_directory, **options), "refused")


def test_the_last_step_takes_what_is_left() -> None:
    settings = RmSettings(rows_per_step=4, num_train_epochs=1.5)
    assert steps_of_rows(settings, 7) == [4, 4, 2]
    assert steps_of_rows(settings, 8) == [4, 4, 4]
    assert steps_of_rows(settings.model_copy(update={"max_steps": 2}), 100) == [4, 4]

"""The bench measures what the stages do, multiplies rightly, leaves nothing behind and says what it changed."""

import json
import math
from pathlib import Path

import pytest

from posttrain.models.files import locate
from posttrain.pipeline import bench as benching
from posttrain.pipeline.bench import Bench, affordable, bench, recipe_of_model, starting_model, summarise
from posttrain.pipeline.bench_pages import machine_line, sentences, stage_table
from posttrain.pipeline.machine import Machine, measure_machine
from posttrain.pipeline.measuring import Measurement, Step, measure
from posttrain.pipeline.recipe import Recipe, load_recipe, single_stage
from posttrain.pipeline.runner import run_recipe
from posttrain.pipeline.stages import STAGE_TYPES
from posttrain.reports.tables import render_markdown
from posttrain.runs.display import NoDisplay
from posttrain.runs.logs import read_rows
from posttrain.settings import ModelSettings
from tests.conftest import call, write_rows

RECIPE = """\
[model]
name_or_path = "nano"
dtype = "float32"
[stage.base]
type = "eval"
data.rows = 5
sampling.max_completion_length = 12
[stage.sft]
type = "sft"
data.rows = 20
rows_per_step = 4
[stage.grpo]
type = "grpo"
init_from = "sft"
data.rows = 20
prompts_per_step = 2
num_generations = 4
max_steps = 7
sampling.max_completion_length = 40
[stage.grpo_eval]
type = "eval"
init_from = "grpo"
data.rows = 5
sampling.max_completion_length = 12
[stage.comparison]
type = "compare"
baseline = "base"
models = ["base", "grpo_eval"]
"""
MACHINE = Machine("cpu", "float32", cores=2, threads=1, tflops=2.0, copy_gb_per_second=10.0)


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
    monkeypatch.setattr(benching, "BUDGET", 0.5)
    monkeypatch.setattr("posttrain.pipeline.machine.SECONDS", 0.01)


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    (tmp_path / "small.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "small.toml")


def stage_of(*flags: str, kind: str = "sft"):
    (stage,) = single_stage(kind, None, flags, name="x").stages
    return stage


SFT = ["--model.dtype", "float32", "--data.rows", "20", "--rows_per_step", "4", "--max_steps", "3"]


def test_a_measured_stage_takes_the_steps_of_the_real_one(tmp_path):
    real = run_recipe(single_stage("sft", None, SFT, name="x"), tmp_path, display=NoDisplay())
    rows = read_rows(real / "sft" / "metrics.jsonl")
    found = measure(STAGE_TYPES["sft"].load(), stage_of(*SFT).settings, budget=math.inf)
    assert found.num_steps == len(rows) == len(found.steps)
    for step, row in zip(found.steps, rows, strict=True):
        assert step.metrics == pytest.approx({name: row[name] for name in step.metrics}, rel=1e-4)
        assert step.seconds >= step.phases["update"] > 0
        assert step.metrics["update/tokens"] > 0
    other = measure(STAGE_TYPES["sft"].load(), stage_of(*SFT, "--seed", "1").settings, budget=math.inf)
    assert other.steps[0].metrics["loss"] != pytest.approx(rows[0]["loss"], rel=1e-4)


def test_flops_are_those_of_the_model_and_an_adapter_saves_the_gradients_of_frozen_weights():
    def flops_per_token(*flags: str) -> float:
        step = measure(STAGE_TYPES["sft"].load(), stage_of(*SFT, *flags).settings, budget=0.0, max_steps=1).steps[0]
        return step.flops / step.metrics["update/tokens"]

    from posttrain.models.lm import load_model

    model = load_model(ModelSettings(dtype="float32"), seed=0).model
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    everything = sum(p.numel() for p in model.parameters())
    assert 6 * body < flops_per_token() < 9 * everything  # 2 forward and 4 backward; the head's forward twice
    assert flops_per_token("--model.lora_r", "2") < 5.5 * everything


def test_time_over_leaves_after_a_step_and_no_steps_show_the_way_to_the_first():
    work, settings = STAGE_TYPES["sft"].load(), stage_of(*SFT).settings
    assert len(measure(work, settings, budget=0.0).steps) == 1
    none = measure(work, settings, budget=0.0, max_steps=0)
    assert (none.steps, none.num_steps) == ([], 3)
    assert none.setup_seconds > 0


def test_a_small_recipe_is_measured_and_nothing_is_written(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    told: list[str] = []
    found = bench(recipe, tmp_path / "runs", tell=told.append)
    assert sorted(tmp_path.rglob("*")) == before
    assert [(stage.name, stage.num_steps) for stage in found.stages] == [
        ("base", 1),
        ("sft", 5),
        ("grpo", 7),
        ("grpo_eval", 1),
    ]
    assert len(told) == 4
    base, sft, grpo, _ = found.stages
    assert (base.num_sequences, grpo.num_sequences, sft.num_sequences) == (5, 8, 0)
    assert 0 < base.mean_length <= 12
    assert base.update is None
    assert sft.generate is None
    for stage in found.stages:
        expected = stage.setup_seconds + stage.num_steps * sum(stage.phase_seconds.values())
        assert stage.seconds == pytest.approx(expected)
        assert stage.peak_gib > 0
        for speed in (stage.update, stage.generate):
            assert speed is None or speed.tokens_per_second > 0
    assert 0 < sft.utilisation < 1
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))
    assert "measured on nano: sft has not run" in grpo.notes
    assert any("comparison (compare)" in sentence for sentence in found.skipped)
    page = render_markdown(stage_table(found))
    assert all(stage.name in page.replace("\\", "") for stage in found.stages)
    assert "float32" in machine_line(found.machines[0])
    assert any("mean length" in sentence for sentence in sentences(found))


def measurement(**metrics: float) -> Measurement:
    """A step that was slow since FLOPs were counted, and two of 3 and 5 seconds."""
    logged = {"update/tokens": 1000.0, "completions/mean_length": 50.0, **metrics}
    steps = [
        Step(99.0, {"generate": 9.0, "update": 80.0}, logged, num_sequences=8, flops=4 * 10**12),
        Step(3.0, {"generate": 1.0, "update": 1.5}, logged, num_sequences=8),
        Step(5.0, {"generate": 3.0, "update": 1.5}, logged, num_sequences=8),
    ]
    return Measurement(setup_seconds=2.0, num_steps=10, steps=steps)


def summary(found: Measurement, *flags: str, larger: float = 1.0, longer: float = 1.0):
    stage = stage_of(*flags, kind="grpo")
    return summarise(stage, stage.settings, found, MACHINE, larger=larger, longer=longer, notes=())


def test_the_arithmetic_of_an_estimate():
    found = summary(measurement())
    assert found.phase_seconds == pytest.approx({"generate": 2.0, "update": 1.5, "rest": 0.5})
    assert found.seconds == pytest.approx(2 + 10 * 4)
    assert found.generate.tokens_per_second == pytest.approx(400 / 2)
    assert found.update.tokens_per_second == pytest.approx(1000 / 1.5)
    assert found.update_tflops == pytest.approx(4 / 1.5)
    assert found.utilisation == pytest.approx(4 / 1.5 / 2)
    assert found.notes == ()


def test_what_was_measured_small_is_multiplied():
    found = summary(measurement(), larger=3.0, longer=2.0)
    assert found.phase_seconds == pytest.approx({"generate": 12.0, "update": 9.0, "rest": 1.5})


def test_groups_that_were_left_out_count_unless_a_reference_keeps_them():
    found = summary(measurement(frac_reward_zero_std=0.75))
    assert found.phase_seconds["update"] == pytest.approx(6.0)
    assert "25% of the groups" in found.notes[0]
    assert summary(measurement(frac_reward_zero_std=0.75), "--kl_coef", "0.1").phase_seconds["update"] == 1.5


def test_several_updates_of_a_batch_count_their_tokens():
    found = summary(measurement(), "--num_iterations", "2")
    assert found.update.tokens == 2000
    assert found.update_tflops == pytest.approx(4 / 1.5)  # counted over both


def test_a_slow_first_step_makes_the_steps_smaller():
    def probe(seconds: float) -> Measurement:
        return Measurement(steps=[Step(seconds, {"update": seconds})])

    assert affordable(probe(0.001), 16) == 16
    assert affordable(probe(benching.BUDGET), 16) == 4
    assert affordable(probe(1e6), 16) == 1
    assert affordable(probe(benching.BUDGET), 16, 2) == 8
    assert affordable(probe(1e6), 16, 2) == 2


def test_kto_is_measured_in_steps_of_two_rows_at_least(monkeypatch):
    flags = ["--losses", '{"kto": 1.0}', "--data.rows", "8", "--rows_per_step", "4", "--model.dtype", "float32"]
    stage = stage_of(*flags, kind="dpo")
    monkeypatch.setattr(benching, "LENIENCY", 0.0)
    found = benching.bench_stage(stage, stage.settings.model, MACHINE)
    assert found.update is not None
    assert "measured with rows_per_step = 2, not 4" in found.notes[0]
    one = stage_of("--data.rows", "3", "--rows_per_step", "1", kind="dpo")
    assert benching.bench_stage(one, one.settings.model, MACHINE).notes == ()


def test_a_stage_measured_small_says_so_and_keeps_its_steps(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(benching, "affordable", lambda probe, full, least: 2)
    found = bench(recipe, tmp_path / "runs")
    base, sft, grpo, _ = found.stages
    assert (base.num_sequences, base.num_steps, sft.num_steps, grpo.num_steps) == (2, 1, 5, 7)
    assert any("data.rows = 2, not 5" in note for note in base.notes)
    assert any("rows_per_step = 2, not 4" in note for note in sft.notes)
    assert not any("multiplied" in note for note in grpo.notes)  # two prompts are all


def test_a_generation_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(benching, "BUDGET", 0.0)
    stage = stage_of("--data.rows", "3", "--sampling.max_completion_length", "40", kind="eval")
    monkeypatch.setattr(benching, "affordable", lambda probe, full, least: full)
    found = benching.bench_stage(stage, stage.settings.model, MACHINE)
    assert found.mean_length == 1.0
    assert found.notes == ("completions were cut at 1 tokens; the estimate takes 40 for each",)
    assert found.phase_seconds["generate"] == pytest.approx(
        40 * found.generate.tokens / found.generate.tokens_per_second
    )


def test_without_any_reward_the_update_is_measured_all_the_same():
    flags = ["--rewards.boxed_answer", "1", "--prompts_per_step", "2", "--num_generations", "2", "--data.rows", "8"]
    stage = stage_of(*flags, "--sampling.max_completion_length", "8", kind="grpo")
    found = benching.bench_stage(stage, stage.settings.model, MACHINE)
    assert found.update is not None
    assert "KL reference" in found.notes[0]


def test_the_starting_model_is_the_artifact_or_else_what_comes_before(recipe, tmp_path):
    stages = {stage.name: stage for stage in recipe.stages}
    assert starting_model(recipe, stages["grpo_eval"], tmp_path).name_or_path == "nano"
    artifact = tmp_path / "sft" / "artifact"
    artifact.mkdir(parents=True)
    assert starting_model(recipe, stages["grpo_eval"], tmp_path).name_or_path == str(artifact)
    (tmp_path / "p.toml").write_text(
        '[stage.base]\ntype = "pretrain"\n[stage.sft]\ntype = "sft"\ninit_from = "base"\ndata.rows = 4\n'
    )
    pretrained = load_recipe(tmp_path / "p.toml")
    assert starting_model(pretrained, pretrained.stages[1], tmp_path) is None
    assert starting_model(pretrained, pretrained.stages[0], tmp_path) is not None


def test_a_model_by_itself_stands_for_a_recipe_of_defaults():
    recipe = recipe_of_model("nano", ["--stage.grpo.num_generations", "16", "--model.lora_r", "4"])
    assert [stage.type for stage in recipe.stages] == ["sft", "grpo", "eval"]
    assert recipe.stages[1].settings.num_generations == 16
    assert {stage.settings.model.lora_r for stage in recipe.stages} == {4}
    odd = str(locate("nano"))
    assert recipe_of_model(odd).stages[0].settings.model.name_or_path == odd


def test_the_machine_is_measured_in_the_precision_asked_for():
    found = measure_machine(ModelSettings(device="cpu", dtype="bfloat16"))
    assert (found.device, found.dtype) == ("cpu", "bfloat16")
    assert found.tflops > 0
    assert found.copy_gb_per_second > 0


def test_the_verb_prints_the_table_or_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text('[stage.sft]\ntype = "sft"\ndata.rows = 8\nrows_per_step = 4\n')
    assert call("bench", "one.toml", "--json", "--stage.sft.max_steps", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"][0]["num_steps"] == 2
    assert found["seconds"] > 0
    assert found["machines"][0]["tflops"] > 0
    assert call("bench", "one.toml") == 0
    printed = capsys.readouterr()
    assert "one: about" in printed.out
    assert "measuring sft" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["one.toml"]


@pytest.mark.parametrize(
    ("content", "argument", "code", "expected"),
    [
        (None, "none.toml", 2, "cannot read none.toml"),
        (None, "./nowhere", 2, "model directory nowhere does not exist"),
        ('[stage.sft]\ntype = "sft"\ndata.source = "rows.jsonl"\n', "r.toml", 3, "stage sft: rows.jsonl"),
        ('[stage.sft]\ntype = "sft"\nmodel.name_or_path = "./empty"\n', "r.toml", 2, "stage sft: empty has neither"),
    ],
)
def test_errors_are_those_of_a_run(content, argument, code, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.jsonl").write_text("not json\n")
    if content:
        Path("r.toml").write_text(content)
    assert call("bench", argument) == code
    assert expected in capsys.readouterr().err


def test_an_estimate_is_the_sum_of_its_stages():
    one, two = summary(measurement()), summary(measurement(), larger=2.0)
    assert Bench("r", (MACHINE,), (one, two), ()).seconds == pytest.approx(one.seconds + two.seconds)


def test_a_judge_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "judged.toml"
    judge = '{ model = "m", base_url = "http://127.0.0.1:9" }'
    path.write_text(
        f'# A judge.\n[stage.grpo]\ntype = "grpo"\nrewards.judge = 1.0\nreward_options.judge = {judge}\nmax_steps = 1\n'
    )
    found = bench(load_recipe(path), tmp_path)
    assert not found.stages
    assert found.skipped == ("grpo was not measured: each call of its judge would be made, and perhaps paid for",)


def test_ppo_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "ppo.toml"
    options = "num_ppo_epochs = 2\nnum_mini_batches = 2\nprompts_per_step = 2\nmax_steps = 3\ndata.rows = 20"
    path.write_text(f'# PPO.\n[stage.ppo]\ntype = "ppo"\n{options}\nsampling.max_completion_length = 8\n')
    (stage,) = bench(load_recipe(path), tmp_path).stages
    assert stage.num_steps == 3
    assert stage.update is not None
    assert stage.update.tokens_per_second > 0


def test_choices_are_measured_without_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"{i} + 1 =", "choices": [str(i), str(i + 1)], "answer": 1} for i in range(6)]
    flags = ("--task", "choices", "--data.source", write_rows(tmp_path / "own.jsonl", rows))
    stage = stage_of(*flags, kind="eval")
    found = benching.bench_stage(stage, stage.settings.model, MACHINE)
    assert (found.num_steps, found.num_sequences, found.generate) == (1, 6, None)
    assert found.step_seconds > 0
    monkeypatch.setattr(benching, "BUDGET", 0.0)
    assert benching.bench_stage(stage, stage.settings.model, MACHINE).step_seconds > 0

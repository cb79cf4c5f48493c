"""Whole jobs through the command line: GSM8K rows on three architectures, and the recipes at a tiny size."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from posttrain.models.files import locate
from posttrain.nano.corpus import MID_TRAINING_BLEND, documents
from posttrain.nano.tokenizer import train_tokenizer
from posttrain.pipeline.recipe import load_recipe
from posttrain.runs.directory import METRICS
from posttrain.runs.logs import read_rows
from tests.conftest import call, write_rows

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}}  # with what each needs
GSM8K = [
    {
        "question": f"A baker makes {n} loaves and sells {n // 2} of them. How many loaves are left?",
        "answer": f"He sells {n}/2=<<{n}/2={n // 2}>>{n // 2} loaves.\nSo {n - n // 2} are left.\n#### {n - n // 2}",
    }
    for n in range(10, 34, 2)
]
MATH = [
    {
        "problem": f"Compute $\\frac{{{n}}}{{2}}$.",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": f"Half of {n} is $\\boxed{{{n // 2}}}$.",
    }
    for n in range(2, 26, 2)
]
NUMINA = [
    {
        "source": "synthetic_math",
        "problem": row["problem"],
        "solution": row["solution"],
        "messages": [{"role": "user", "content": row["problem"]}, {"role": "assistant", "content": row["solution"]}],
    }
    for row in MATH
]
ORCA = [
    {
        "system": "You are an AI assistant." if n % 2 else "",
        "question": f"How much is {n} and {n}?",
        "chosen": f"{n} and {n} make {2 * n}.",
        "rejected": f"The question has two numbers, and together they make {2 * n + 1}.",
    }
    for n in range(40)
]
ULTRAFEEDBACK = [
    {
        "prompt": f"How much is {n} and {n}?",
        "prompt_id": f"{n:064x}",
        "chosen": [
            {"content": f"How much is {n} and {n}?", "role": "user"},
            {"content": "I'm sorry, but I can't help with that." if n == 0 else f"It is {2 * n}.", "role": "assistant"},
        ],
        "rejected": [
            {"content": f"How much is {n} and {n}?", "role": "user"},
            {"content": f"It is {2 * n + 1}.", "role": "assistant"},
        ],
        "messages": [
            {"content": f"How much is {n} and {n}?", "role": "user"},
            {"content": f"It is {2 * n}.", "role": "assistant"},
        ],
        "score_chosen": 8.0,
        "score_rejected": 5.5,
    }
    for n in range(33)
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def models(save_model: Callable[..., str]) -> dict[str, str]:
    """Return the directories of two-layer models of three families, with a tokenizer that knows the rows' words."""
    texts = [row["question"] + row["answer"] for row in GSM8K] + [row["solution"] for row in MATH]
    tokenizer = train_tokenizer([*texts, *islice(documents(MID_TRAINING_BLEND, seed=0), 300)], 400, 1024)
    return {
        family: save_model(family, tokenizer, max_position_embeddings=2048, **changes)
        for family, changes in FAMILIES.items()
    }


def run(*arguments: str) -> None:
    assert call(*arguments, "--display", "none") == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_eval_and_grpo_on_gsm8k_rows(name: str, models: dict[str, str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.jsonl", GSM8K)
    common = ["--data.path", data, "--model.name_or_path", models[name], "--model.dtype", "float32"]
    runs = ["--runs_dir", str(tmp_path / "runs"), "--sampling.max_completion_length", "8"]
    run(
        "eval",
        "--task",
        "gsm8k",
        *common,
        *runs,
        "--name",
        "base",
        "--num_samples",
        "2",
        "--sampling.temperature",
        "1.0",
    )
    summary = json.loads((tmp_path / "runs/base/eval/artifact/summary.json").read_text())
    assert summary["problems"] == 12
    assert sum(summary["categories"].values()) == pytest.approx(1.0)
    grpo = ["--data.source", "gsm8k", *common, *runs, "--name", "policy", "--model.lora_r", "4", "--max_steps", "2"]
    run("grpo", *grpo, "--prompts_per_step", "2", "--num_generations", "3", "--kl_coef", "0.1")
    rows = read_rows(tmp_path / "runs/policy/grpo/metrics.jsonl")
    assert len(rows) == 2
    assert all(row["kl/engine"] < 1e-6 for row in rows)
    assert (tmp_path / "runs/policy/grpo/artifact/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("split", ["train", "test"])
def test_grpo_on_the_real_gsm8k(split: str, models: dict[str, str], tmp_path: Path) -> None:
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip("the real GSM8K rows are not beside the repository")
    arguments = ["--data.source", "gsm8k", "--data.path", str(SHARED / "gsm8k"), "--data.split", split]
    arguments += ["--model.name_or_path", models["qwen2"], "--data.rows", "20", "--max_steps", "1"]
    arguments += ["--prompts_per_step", "2", "--num_generations", "2", "--sampling.max_completion_length", "4"]
    run("grpo", *arguments, "--runs_dir", str(tmp_path))
    assert len(read_rows(tmp_path / "grpo/grpo/metrics.jsonl")) == 1


def test_math_reasoning_recipe_on_a_tiny_qwen2(models: dict[str, str], tmp_path: Path) -> None:
    math_rows, numina_rows = write_rows(tmp_path / "math.jsonl", MATH), write_rows(tmp_path / "numina.jsonl", NUMINA)
    overrides = ["--model.name_or_path", models["qwen2"], "--model.dtype", "float32"]
    for stage in ("base", "sft_eval", "grpo_eval", "grpo"):
        overrides += [f"--stage.{stage}.data.path", math_rows]
        overrides += [f"--stage.{stage}.sampling.max_completion_length", "6"]
    overrides += ["--stage.sft.data.path", numina_rows, "--stage.sft.rows_per_step", "4"]
    overrides += ["--stage.grpo.max_steps", "1", "--stage.grpo.prompts_per_step", "2", "--runs_dir", str(tmp_path)]
    run("run", str(ROOT / "recipes/math_reasoning.toml"), *overrides)
    comparison = json.loads((tmp_path / "math_reasoning/comparison/comparison.json").read_text())
    assert comparison
    assert len(read_rows(tmp_path / "math_reasoning/sft/metrics.jsonl")) == 3
    assert (tmp_path / "math_reasoning/comparison/report.md").read_text().count("grpo") >= 1


def test_rlaif_qwen_nano_recipe_on_a_tiny_qwen2(models: dict[str, str], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "gsm8k.jsonl", GSM8K)
    overrides = ["--model.name_or_path", models["qwen2"], "--model.dtype", "float32", "--data.path", rows]
    for stage in ("base", "ppo", "tuned"):
        overrides += [f"--stage.{stage}.sampling.max_completion_length", "6"]
    overrides += ["--stage.ppo.max_steps", "2", "--stage.ppo.prompts_per_step", "4", "--runs_dir", str(tmp_path)]
    run("run", str(ROOT / "recipes/rlaif_qwen_nano.toml"), *overrides)
    stage = tmp_path / "rlaif_qwen_nano/ppo"
    steps = read_rows(stage / METRICS)
    assert [row["step"] for row in steps] == [1, 2]
    assert steps[1]["kl_coef"] < steps[0]["kl_coef"] == 0.2  # the KL is far below its target of 6 nats
    assert all(row["rewards/boxed_answer/mean"] == 0.0 and "rewards/hybrid/mean" in row for row in steps)
    assert (stage / "artifact/critic/value_head.safetensors").is_file()
    assert (tmp_path / "rlaif_qwen_nano/comparison/report.md").is_file()


def test_dpo_qlora_ultrafeedback_recipe_on_a_tiny_qwen2(models: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    (tmp_path / "chat.jinja").write_text(CHATML)
    overrides = ["--model.name_or_path", models["qwen2"], "--model.chat_template", str(tmp_path / "chat.jinja")]
    overrides += ["--stage.dpo.data.path", write_rows(tmp_path / "pairs.jsonl", ULTRAFEEDBACK)]
    run("run", str(ROOT / "recipes/dpo_qlora_ultrafeedback.toml"), *overrides, "--runs_dir", str(tmp_path))
    stage = tmp_path / "dpo_qlora_ultrafeedback/dpo"
    assert [row["step"] for row in read_rows(stage / "metrics.jsonl")] == [1, 2]
    assert json.loads((stage / "result.json").read_text())["summary"]["rows"] == 32  # one was a refusal
    assert call("export", str(stage), "--out", str(tmp_path / "merged")) == 0
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_rlhf_compare_smollm2_recipe_on_a_tiny_llama(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML)
    overrides = ["--model.name_or_path", models["llama"], "--model.chat_template", str(tmp_path / "chat.jinja")]
    overrides += ["--data.path", write_rows(tmp_path / "orca.jsonl", ORCA), "--runs_dir", str(tmp_path)]
    for stage in ("rm", "dpo", "ppo", "grpo"):
        overrides += [f"--stage.{stage}.max_steps", "3"]
    for stage in ("ppo", "grpo"):
        overrides += [f"--stage.{stage}.sampling.max_completion_length", "8"]
    for stage in ("base", "dpo_eval", "ppo_eval", "grpo_eval"):
        overrides += [f"--stage.{stage}.sampling.max_completion_length", "4"]
    run("run", str(ROOT / "recipes/rlhf_compare_smollm2.toml"), *overrides)
    directory = tmp_path / "rlhf_compare_smollm2"
    assert json.loads((directory / "rm/result.json").read_text())["summary"]["verdict"]
    rows = [json.loads((directory / stage / "result.json").read_text())["summary"] for stage in ("rm", "dpo")]
    held_out = len(ORCA) - rows[1]["rows"]
    assert 0 < held_out < 12
    assert rows[0]["rows"] + rows[0]["held_out_rows"] == rows[1]["rows"]
    adapters = [directory / stage / "artifact/adapter_model.safetensors" for stage in ("rm", "dpo", "ppo", "grpo")]
    assert all(adapter.is_file() for adapter in adapters)
    assert (directory / "ppo/artifact/critic/adapter_model.safetensors").is_file()
    for stage in ("ppo", "grpo"):
        assert all(row["rewards/reward_model/mean"] == row["reward"] for row in read_rows(directory / stage / METRICS))
    parts = json.loads((directory / "comparison/report.json").read_text())["parts"]
    assert parts["win_rates"]["alignment"]["models"].keys() == {"dpo", "ppo", "grpo"}
    summary = json.loads((directory / "dpo_eval/artifact/summary.json").read_text())
    assert set(summary["subsets"]["kind"]) == {"constraint", "fact", "safety"}
    assert summary["scorer"]["score"] == "reward"
    assert summary["results"].keys() >= {"reward_model,none", "passes_checks,none"}


def test_math500_rows_are_evaluated(models: dict[str, str], tmp_path: Path) -> None:
    if not (SHARED / "math500").is_dir():
        pytest.skip("the real MATH-500 rows are not beside the repository")
    arguments = ["--task", "math500", "--data.path", str(SHARED / "math500"), "--data.rows", "8"]
    arguments += ["--model.name_or_path", models["qwen2"], "--sampling.max_completion_length", "4"]
    run("eval", *arguments, "--runs_dir", str(tmp_path))
    assert json.loads((tmp_path / "eval/eval/artifact/summary.json").read_text())["problems"] == 8


TINY = {
    "sft": ["data.rows=32", "num_train_epochs=1.0"],
    "eval": ["data.rows=24"],
    "dpo": ["max_steps=2"],
    "rm": ["max_steps=2"],
    "ppo": ["max_steps=2", "prompts_per_step=4", "data.rows=50", "critic.warmup_steps=1"],
    "grpo": ["max_steps=2", "prompts_per_step=4", "data.rows=50", "allow_weak_reward_model=true"],
}


@pytest.mark.parametrize("name", ["demo", "dpo_qlora_nano", "ppo_nano", "rlhf_compare_nano"])
def test_nano_recipes_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    if name == "dpo_qlora_nano":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    assert locate("nano") is not None
    recipe = ROOT / f"recipes/{name}.toml"
    stages = load_recipe(recipe).stages
    smaller = [f"--stage.{stage.name}.{flag}" for stage in stages for flag in TINY.get(stage.type, [])]
    run("run", str(recipe), *smaller, "--runs_dir", str(tmp_path))
    for stage in stages:
        if stage.type in ("dpo", "rm", "grpo", "ppo"):
            assert len(read_rows(tmp_path / name / stage.name / "metrics.jsonl")) == 2
        if stage.type == "grpo":
            assert read_rows(tmp_path / name / stage.name / "metrics.jsonl")[0]["kl/engine"] < 1e-3
    assert (tmp_path / name / "comparison/report.md").is_file()


def test_preferences_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model.dtype", "float32", "--model.lora_r", "4", "--data.rows", "16", "--max_steps", "1"]
    run("dpo", *common, "--dry-run", "--runs_dir", str(tmp_path))
    shown = capsys.readouterr().out
    assert shown.count("trained") >= 2  # both branches
    assert "16 rows read" in shown
    run("dpo", *common, "--runs_dir", str(tmp_path))
    assert (tmp_path / "dpo/dpo/artifact/adapter_model.safetensors").is_file()
    run("rm", *common, "--data.source", "nano_longer_wins", "--runs_dir", str(tmp_path))
    summary = json.loads((tmp_path / "rm/rm/result.json").read_text())["summary"]
    assert summary["longer_chosen"] == 1.0
    assert summary["verdict"]

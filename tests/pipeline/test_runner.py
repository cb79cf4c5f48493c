"""Running a recipe: order, skipping, resuming after a kill, and refusing a changed directory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.pipeline.recipe import load_recipe
from posttrain.pipeline.runner import run_recipe, stage_fingerprints
from posttrain.pipeline.stages import STAGE_TYPES, StageType
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.settings import CompareSettings, EvalSettings, SftSettings

RECIPE = """\
seed = 1
[stage.first]
type = "sft"
max_steps = 3
[stage.second]
type = "sft"
init_from = "first"
[stage.first_eval]
type = "eval"
init_from = "first"
[stage.second_eval]
type = "eval"
init_from = "second"
[stage.comparison]
type = "compare"
baseline = "first_eval"
models = ["first_eval", "second_eval"]
"""
NAMES = ["first", "second", "first_eval", "second_eval", "comparison"]

calls: list[str] = []


def train(settings: SftSettings, run: StageRun) -> None:
    """A stage whose model is a text file that tells what it came from."""
    calls.append(run.path.name)
    if os.environ.get("DIE_IN") == run.path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    source = Path(settings.model.name_or_path, "model.txt")
    text = f"{source.read_text() if source.exists() else 'nano'} {settings.max_steps}"
    run.publish_artifact(lambda path: (path / "model.txt").write_text(text) and None)
    run.finish({})


def evaluate(settings: EvalSettings, run: StageRun) -> None:
    calls.append(run.path.name)
    run.finish({"model": Path(settings.model.name_or_path, "model.txt").read_text()})


def compare(settings: CompareSettings, run: StageRun) -> None:
    calls.append(run.path.name)
    run.finish({name: json.loads((run.path.parent / name / "result.json").read_text()) for name in settings.models})


def install() -> None:
    """Let the stage types run the small functions above."""
    STAGE_TYPES["sft"] = StageType(SftSettings, "model", lambda: train)
    STAGE_TYPES["eval"] = StageType(EvalSettings, "evaluation", lambda: evaluate)
    STAGE_TYPES["compare"] = StageType(CompareSettings, "comparison", lambda: compare)


@pytest.fixture(autouse=True)
def small_stages():
    kept = dict(STAGE_TYPES)
    install()
    calls.clear()
    yield
    STAGE_TYPES.update(kept)


def run(tmp_path: Path, *overrides: str, overwrite: bool = False) -> Path:
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml", overrides)
    return run_recipe(recipe, tmp_path / "runs", overwrite=overwrite, display=NoDisplay())


def test_stages_run_in_order_and_feed_one_another(tmp_path):
    directory = run(tmp_path)
    assert directory == tmp_path / "runs" / "r"
    assert calls == NAMES
    result = json.loads((directory / "comparison" / "result.json").read_text())["summary"]
    assert result["first_eval"]["summary"]["model"] == "nano 3"
    assert result["second_eval"]["summary"]["model"] == "nano 3 0"


def test_a_second_time_nothing_runs(tmp_path):
    run(tmp_path)
    calls.clear()
    run(tmp_path)
    assert calls == []


def test_a_killed_run_continues_with_the_stage_that_died(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_runner
from pathlib import Path
test_runner.install()
test_runner.run(Path({str(tmp_path)!r}))
"""
    dead = subprocess.run([sys.executable, "-c", code], env={**os.environ, "DIE_IN": "second"}, capture_output=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()
    run(tmp_path)
    assert calls == NAMES[1:]


def test_a_changed_setting_is_refused_with_what_changed_and_the_ways_out(tmp_path):
    run(tmp_path)
    calls.clear()
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, "--stage.second.learning_rate", "0.5")
    text = str(caught.value)
    assert "learning_rate was 2e-05, is 0.5" in text
    assert "nothing was changed" in text
    assert "--overwrite" in text
    assert "--name r-2" in text
    assert calls == []


def test_a_change_is_refused_before_any_stage_runs(tmp_path):
    directory = run(tmp_path)
    (directory / "first" / "result.json").unlink()
    calls.clear()
    with pytest.raises(ConfigError, match="learning_rate"):
        run(tmp_path, "--stage.second.learning_rate", "0.5")
    assert calls == []


def test_overwrite_runs_the_changed_stage_and_what_it_feeds_and_no_other(tmp_path):
    directory = run(tmp_path)
    calls.clear()
    run(tmp_path, "--stage.second.max_steps", "9", overwrite=True)
    assert calls == ["second", "second_eval", "comparison"]
    assert (directory / "second" / "artifact" / "model.txt").read_text() == "nano 3 9"


def test_a_new_name_leaves_the_old_run_alone(tmp_path):
    run(tmp_path)
    calls.clear()
    assert run(tmp_path, "--stage.second.max_steps", "9", "--name", "r-2").name == "r-2"
    assert calls == NAMES


def test_a_setting_that_changes_no_result_is_free(tmp_path):
    run(tmp_path)
    calls.clear()
    run(tmp_path, "--stage.second.max_tokens_per_micro_batch", "7")
    assert calls == []


def test_fingerprints_follow_upstream_settings_and_local_data_and_not_the_directory(tmp_path):
    def prints(*overrides: str) -> dict[str, str]:
        return stage_fingerprints(load_recipe(tmp_path / "r.toml", overrides))

    (tmp_path / "r.toml").write_text(RECIPE)
    before, after = prints(), prints("--stage.second.seed", "5")
    assert {name for name in NAMES if before[name] != after[name]} == {"second", "second_eval", "comparison"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    flag = ("--stage.first.data.source", str(rows))
    one = prints(*flag)
    rows.write_text('{"text": "b"}\n')
    assert all(one[name] != prints(*flag)[name] for name in NAMES)

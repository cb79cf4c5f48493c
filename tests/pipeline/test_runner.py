"""Running a recipe: order, skipping, resuming after a kill, and refusing a changed directory."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import CheckpointError, ConfigError, DataError, ModelError, StorageError
from posttrain.pipeline.inputs import input_hashes, model_hash
from posttrain.pipeline.recipe import load_recipe, single_stage
from posttrain.pipeline.runner import run_recipe, stage_fingerprints
from posttrain.pipeline.stages import STAGE_TYPES, StageType
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay, PlainDisplay
from posttrain.runs.logs import read_rows
from posttrain.settings import CompareSettings, DataSettings, EvalSettings, ModelSettings, SftSettings

RECIPE = """\
seed = 1
model.name_or_path = "owner/model"
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
    if os.environ.get("FAIL_IN") == run.path.name:
        raise DataError("2 malformed rows", fix="--data.max_bad_rows 2")
    logging.getLogger("posttrain.data.sources").warning("%d rows left out", 3)
    for step in run.steps(3):
        run.save(step, lambda: ({}, {}))
    source = Path(settings.model.name_or_path, "model.txt")
    text = f"{source.read_text() if source.exists() else settings.model.name_or_path} {settings.max_steps}"
    run.publish_artifact(lambda path: (path / "model.txt").write_text(text) and None)
    run.finish({})


def evaluate(settings: EvalSettings, run: StageRun) -> None:
    calls.append(run.path.name)
    run.publish_artifact(lambda path: (path / "samples.txt").write_text("graded") and None)
    run.finish({"model": Path(settings.model.name_or_path, "model.txt").read_text()})


def compare(settings: CompareSettings, run: StageRun) -> None:
    calls.append(run.path.name)
    run.finish({name: json.loads((run.path.parent / name / "result.json").read_text()) for name in settings.models})


def install() -> None:
    """Let the stage types run the small functions above."""
    STAGE_TYPES["sft"] = StageType(SftSettings, ("model",), lambda: train)
    STAGE_TYPES["eval"] = StageType(EvalSettings, ("evaluation",), lambda: evaluate)
    STAGE_TYPES["compare"] = StageType(CompareSettings, (), lambda: compare)


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
    assert result["first_eval"]["summary"]["model"] == "owner/model 3"
    assert result["second_eval"]["summary"]["model"] == "owner/model 3 0"


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
    assert (directory / "second" / "artifact" / "model.txt").read_text() == "owner/model 3 9"


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


@pytest.mark.parametrize("damaged", ["run.json", "settings.json"])
def test_overwrite_starts_an_unreadable_stage_anew(tmp_path, damaged):
    directory = run(tmp_path)
    calls.clear()
    (directory / "second" / damaged).write_text("{")
    with pytest.raises(ConfigError, match="is unreadable"):
        run(tmp_path)
    assert calls == []
    run(tmp_path, overwrite=True)
    assert calls == ["second"]


def test_overwrite_starts_a_stage_without_usable_checkpoints_anew(tmp_path):
    directory = run(tmp_path)
    (directory / "second" / "result.json").unlink()
    for manifest in (directory / "second" / "checkpoints").rglob("manifest.json"):
        manifest.unlink()
    calls.clear()
    with pytest.raises(CheckpointError, match="start over with --overwrite"):
        run(tmp_path)
    run(tmp_path, overwrite=True)
    assert calls == ["second"]


@pytest.mark.parametrize("stage", ["first", "second_eval"])
def test_a_finished_stage_with_a_damaged_artifact_is_not_skipped_and_the_fix_mends_it(tmp_path, stage):
    directory = run(tmp_path)
    next((directory / stage / "artifact").glob("*.txt")).write_text("other")
    calls.clear()
    with pytest.raises(StorageError, match=f"{stage}/artifact is damaged") as caught:
        run(tmp_path)
    subprocess.run(caught.value.fix, shell=True, check=True)
    run(tmp_path)
    assert calls == [stage]
    run(tmp_path)


def test_an_error_of_a_stage_names_it_and_its_settings_as_the_recipe_does(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_IN", "second")
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert str(caught.value) == "stage second: 2 malformed rows\n  fix: --stage.second.data.max_bad_rows 2"
    alone = single_stage("sft", None, ["--model.name_or_path", "owner/model"], name="second")
    monkeypatch.setenv("FAIL_IN", "sft")
    with pytest.raises(DataError) as caught:
        run_recipe(alone, tmp_path / "runs", display=NoDisplay())
    assert str(caught.value) == "2 malformed rows\n  fix: --data.max_bad_rows 2"


def test_warnings_of_a_stage_are_kept_and_shown_once(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(RECIPE)
    directory = run_recipe(load_recipe(tmp_path / "r.toml"), tmp_path / "runs", display=PlainDisplay())
    notices = [event["text"] for event in read_rows(directory / "first" / "events.jsonl") if event["event"] == "notice"]
    assert notices == ["3 rows left out"]
    assert capsys.readouterr().err.count("3 rows left out") == 2  # once for each of the two training stages
    logging.getLogger("posttrain.data").warning("after the run")
    assert "after the run" not in (directory / "comparison" / "events.jsonl").read_text()


def test_every_input_is_in_the_fingerprint(tmp_path):
    def hashes(data: DataSettings | None = None, model: str = "owner/model") -> dict[str, str]:
        settings = SftSettings(data=data or DataSettings(), model=ModelSettings(name_or_path=model))
        return input_hashes(settings)

    assert hashes() == {}
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text('{"text": "a"}\n')
    for data in (DataSettings(source=str(rows)), DataSettings(source="gsm8k", path=str(rows))):
        before = hashes(data)
        (rows / "notes.md").write_text("another one")
        (rows / "test.jsonl").write_text("another one")
        assert hashes(data) == before
        (rows / "train.jsonl").write_text(f'{{"text": "{data.source}"}}\n')
        assert hashes(data) != before
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    write_files(model, **{"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "{}"})
    base = json.dumps({"base_model_name_or_path": str(model)})
    write_files(adapter, **{"adapter_config.json": base, "adapter_model.safetensors": "a"})
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        before = hashes(model=str(model)), hashes(model=str(adapter))
        (model / name).write_text('{"changed": 1}')
        assert hashes(model=str(model)) != before[0]
        assert hashes(model=str(adapter)) != before[1]
    with pytest.raises(ModelError, match="does not exist"):
        hashes(model=str(tmp_path / "none"))


def test_a_large_file_of_weights_is_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.pipeline.inputs.HASHED_BYTES", 3)
    write_files(tmp_path / "model", **{"config.json": "{}", "model.safetensors": "large"})
    weights = tmp_path / "model" / "model.safetensors"
    before = model_hash(ModelSettings(name_or_path=str(tmp_path / "model")))
    os.utime(weights, ns=(1, 1))
    assert model_hash(ModelSettings(name_or_path=str(tmp_path / "model"))) != before


def write_files(directory: Path, **contents: str) -> None:
    directory.mkdir()
    for name, text in contents.items():
        (directory / name).write_text(text)

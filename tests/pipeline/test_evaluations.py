"""Which evaluations a user means by the directories named."""

from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.pipeline.evaluations import choose_baseline, find_evaluations


def make(directory: Path, settings: str = '{"task": "nano"}', *, finished: bool = True) -> Path:
    directory.mkdir(parents=True)
    (directory / "settings.json").write_text(settings)
    if finished:
        (directory / "result.json").write_text("{}")
    return directory


def test_a_run_stands_for_its_finished_evaluations(tmp_path):
    base, late = make(tmp_path / "a" / "base"), make(tmp_path / "a" / "late")
    make(tmp_path / "a" / "sft", '{"learning_rate": 1}')
    make(tmp_path / "a" / "running", finished=False)
    assert find_evaluations([tmp_path / "a"]) == {"base": base, "late": late}
    assert find_evaluations([late, tmp_path / "a"]) == {"late": late, "base": base}


def test_equal_names_are_told_apart_by_their_runs(tmp_path):
    one, other = make(tmp_path / "a" / "eval"), make(tmp_path / "b" / "eval")
    assert find_evaluations([one, other]) == {"a/eval": one, "b/eval": other}


def test_what_is_no_finished_evaluation_is_refused(tmp_path):
    running = make(tmp_path / "a" / "running", finished=False)
    with pytest.raises(ConfigError, match="is not finished"):
        find_evaluations([running])
    with pytest.raises(ConfigError, match="holds none that is finished"):
        find_evaluations([tmp_path / "a"])
    with pytest.raises(ConfigError, match=r"no directory .*; did you mean running"):
        find_evaluations([tmp_path / "a" / "runing"])


def test_the_baseline_is_the_first_or_the_one_named(tmp_path):
    evaluations = {"base": tmp_path, "sft": tmp_path}
    assert choose_baseline(evaluations, None) == "base"
    assert choose_baseline(evaluations, "sft") == "sft"
    with pytest.raises(ConfigError, match="no evaluation bas here; did you mean base"):
        choose_baseline(evaluations, "bas")
    with pytest.raises(ConfigError, match="needs two finished evaluations"):
        choose_baseline({"base": tmp_path}, None)

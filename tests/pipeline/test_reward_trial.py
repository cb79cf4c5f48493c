"""`posttrain rewards list` and `try`: what a completion would be paid, every part of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.data.sources import load_rows
from posttrain.rewards import OPTION_REWARDS, REWARDS
from posttrain.runs.rollout_files import write_rollouts
from posttrain.settings import DataSettings, GrpoSettings
from tests.conftest import write_rows
from tests.rewards.conftest import ChatServer, said

FILE = """
def mine(completions, answer, **columns):
    return [float(a in c) for c, a in zip(completions, answer)]
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["rewards", *arguments])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_list_names_every_reward_and_what_it_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    code, out, _ = call(capsys, "list", "--reward-file", str(file), "--json")
    rewards = {each["name"]: each for each in json.loads(out)}
    assert code == 0
    assert rewards.keys() == {*REWARDS, *OPTION_REWARDS, "judge", "reward_model", "mine"}
    assert all(each["pays"].endswith((".", ")")) for each in rewards.values())
    assert rewards["hybrid"]["needs_gold"]
    assert set(rewards["soft_overlong"]["options"]) == {"max_length", "buffer"}
    code, out, _ = call(capsys, "list")
    assert "needs a gold answer" in out
    assert "[needs instruction_id_list or should_refuse or accepted_answers]" in out
    assert rewards["follows_instructions"]["reads_columns"] == ["instruction_id_list"]


def test_try_scores_rows_by_their_own_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    rows = [
        {"prompt": "A motto?", "completion": "Row, row", **asked},
        {"prompt": "A proverb?", "completion": '"Time flies."', **asked},
    ]
    flags = ["--rewards.follows_instructions", "1.0", "--rewards.follows_every_instruction", "0.0"]
    code, out, err = call(capsys, "try", write_rows(tmp_path / "rows.jsonl", rows), *flags, "--json")
    assert code == 0, err
    assert [each["reward"] for each in json.loads(out)["completions"]] == [0.0, 1.0]
    code, _, err = call(capsys, "try", "--completion", "Row", "--rewards.follows_instructions", "1.0")
    assert code == 6
    assert "needs a column instruction_id_list" in err


def test_try_shows_the_parts_of_the_hybrid_reward(capsys: pytest.CaptureFixture[str]) -> None:
    text = r"First, 6 * 7 = 42. Therefore \boxed{42}"
    code, out, _ = call(capsys, "try", "--completion", text, "--answer", "#### 42")
    assert code == 0
    parts = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if line.startswith("  ")}
    wanted = {"hybrid": 1.7, "numeric_match": 1.0, "step_words": 1.0, "format_boxed": 1.0, "longer_than": 0.0}
    assert parts == {**wanted, "reward": 1.7}


def test_try_scores_a_file_by_its_prompts_groups_with_the_users_function(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    rows = [
        {"prompt": "6 * 7?", "completion": "42", "target": "42"},
        {"prompt": "2 + 2?", "completion": "so 5", "target": "4"},
        {"prompt": "6 * 7?", "completion": "so it is 42", "target": "42"},
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--data.columns.answer", "target", "--reward_file", str(file), "--rewards.mine", "1.0"]
    flags += ["--rewards.length_control", "0.5", "--rewards.length_band", "0.0"]
    flags += ["--reward_options.length_band.max_length", "2"]
    code, out, err = call(capsys, "try", source, *flags, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert "has the form of TRL" in report["told"][0]
    assert [each["reward"] for each in report["completions"]] == [1.25, 0.75, 0.0]
    assert [each["scores"]["length_control"] for each in report["completions"]] == [0.5, -0.5, 0.0]
    assert [each["place"].rpartition(":")[2] for each in report["completions"]] == ["1", "3", "2"]
    code, out, _ = call(capsys, "try", source, *flags, "--show", "1")
    assert out.count("(sum)") == 1
    assert "3 completions" in out


def test_rollouts_of_a_run_are_scored_with_the_golds_of_its_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = GrpoSettings(data=DataSettings(rows=2))
    rows = load_rows(settings.data, seed=settings.seed)
    rollout = {"step": 1, "messages": None, "stop_reason": "eos", "policy_version": 0, "reward": 0.0}
    rollouts = [
        {**rollout, "prompt_id": row.id, "sample": sample, "prompt": row.prompt, "completion": f"#### {answer}"}
        for row in rows
        for sample, answer in enumerate([row.columns["answer"], "no"])
    ]
    (tmp_path / "rollouts").mkdir()
    write_rollouts(tmp_path / "rollouts" / "step-00000001.parquet", rollouts)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    code, out, err = call(capsys, "try", str(tmp_path), "--rewards.numeric_match", "1.0", "--json")
    assert code == 0, err
    assert [each["reward"] for each in json.loads(out)["completions"]] == [1.0, 0.0, 1.0, 0.0]


def test_a_judge_is_held_against_the_labels_of_pairs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A judge that takes the longer answer, and of answers alike in length the first."""

    def longer(body: dict[str, Any], number: int) -> Any:
        a, b = (
            part.split("]\n", 1)[1].split("\n[", 1)[0] for part in body["messages"][1]["content"].split("[answer ")[1:]
        )
        return 200, said(json.dumps({"better": "A" if len(a) >= len(b) else "B"})), {}

    rows = [
        {"prompt": "1?", "chosen": "long enough", "rejected": "short"},
        {"prompt": "2?", "chosen": "short", "rejected": "long enough"},
        {"prompt": "3?", "chosen": "yes", "rejected": "nay"},
        {"prompt": "4?", "chosen": "a long one", "rejected": "one"},
    ]
    server = ChatServer(longer)
    flags = ["--rewards.judge", "1.0", "--rewards.longer_than", "0.0", "--reward_options.longer_than.characters", "100"]
    flags += [f"--reward_options.judge.{key}={value}" for key, value in
              {"model": "m", "mode": "pairwise", "base_url": server.url}.items()]  # fmt: skip
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    code, out, err = call(capsys, "try", source, *flags, "--json")
    assert code == 0, err
    agreement = json.loads(out)["agreement"]
    assert agreement["judge"]["pairs"] == agreement["longer_than"]["pairs"] == 4
    assert agreement["judge"]["chosen"]["mean"] == 2.5 / 4
    assert agreement["judge"]["first_shown"]["mean"] == (3 / 4 + 1 - 2 / 4) / 2
    assert agreement["longer_than"]["chosen"]["mean"] == 0.5
    assert "first_shown" not in agreement["longer_than"]
    code, out, _ = call(capsys, "try", source, *flags)
    server.close()
    assert "prefers the chosen completion in 62.5% [" in out
    assert "prefers what it is shown first in 62.5% [" in out


def test_try_says_what_failed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions):\n    return [1 / len(c) for c in completions]\n")
    flags = ["--reward_file", str(file), "--rewards.mine", "1.0"]
    code, out, _ = call(capsys, "try", *flags, "--completion", "ab", "--completion", "")
    assert code == 0
    assert "reward mine failed on 1 of 2 completions; the first: it raised ZeroDivisionError" in out
    assert "none x 1.0  failed" in out


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([], 2, "rewards try takes a source, or a completion"),
        (["rows.jsonl", "--completion", "x"], 2, "rewards try takes a source, or a completion"),
        (["--completion", "x", "--rewards.hybird", "1.0"], 2, "Did you mean hybrid?"),
        (["--completion", "x", "--rewards.reward_model", "1.0"], 2, "posttrain score"),
        (["--completion", "x"], 6, "grading needs a column answer"),
        (["none.jsonl"], 3, "no such file"),
    ],
)
def test_what_cannot_be_tried(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = call(capsys, "try", *arguments)
    assert expected in err
    assert found == code

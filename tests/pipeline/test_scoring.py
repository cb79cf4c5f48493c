"""`posttrain score`: rows of every kind, rollouts, typed text; what is too long is named; the report and the file."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain.models.lm import load_reward_model
from posttrain.pipeline.scoring import (
    candidates_of,
    report_lines,
    report_of,
    reward_model_of,
    score_candidates,
    text_of,
)
from posttrain.rewards.learned import LearnedReward
from posttrain.runs.rollout_files import write_rollouts
from posttrain.settings import DataSettings, ModelSettings
from tests.conftest import call, write_rows


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(reward_model: str, *pairs: tuple[Any, Any]) -> list[float | None]:
    """Return the scores of prompts and completions by the reward function."""
    loaded = load_reward_model(ModelSettings(name_or_path=reward_model, dtype="float32", device="cpu"))
    return LearnedReward(loaded, max_tokens=4096)([p for p, _ in pairs], [c for _, c in pairs])


def scored(reward_model: str, source: str, **options: Any) -> list[Any]:
    model = ModelSettings(name_or_path=reward_model, dtype="float32", device="cpu")
    data = DataSettings(source=source)
    return score_candidates(model, candidates_of(source, data), **{"max_length": 2048, "max_tokens": 300, **options})


USER, REPLY, AGAIN = ({"role": r, "content": c} for r, c in (("user", "2+2?"), ("assistant", "4"), ("user", "Sure?")))
LAST = {"role": "assistant", "content": "Yes, 4"}


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        ({"prompt": "2+2?", "completion": " 4"}, [("2+2?", " 4")]),
        ({"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}, [("2+2?", " 4"), ("2+2?", " 5")]),
        ({"prompt": "2+2?", "completion": " 4", "label": True}, [("2+2?", " 4")]),
        ({"messages": [USER, REPLY, AGAIN, LAST]}, [([USER, REPLY, AGAIN], [LAST])]),
        ({"messages": [USER, REPLY, AGAIN]}, [([USER], [REPLY])]),
    ],
)
def test_every_kind_of_rows(
    reward_model: str, tmp_path: Path, row: dict[str, Any], pairs: list[tuple[Any, Any]]
) -> None:
    found = scored(reward_model, write_rows(tmp_path / "rows.jsonl", [row]))
    assert [each.score for each in found] == pytest.approx(expected(reward_model, *pairs), abs=1e-5)


def test_rows_without_completions_are_refused(reward_model: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="score needs"):
        scored(reward_model, write_rows(tmp_path / "rows.jsonl", [{"prompt": "2+2?"}]))


def rollout(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    row = {"step": 1, "prompt_id": prompt, "sample": 0, "prompt": prompt, "messages": None, "completion": completion}
    return {**row, "reward": 1.0, "stop_reason": "eos", "policy_version": 0, **more}


def test_rollouts_of_a_stage_with_their_cuts_and_messages(reward_model: str, tmp_path: Path) -> None:
    (tmp_path / "grpo" / "rollouts").mkdir(parents=True)
    file = tmp_path / "grpo" / "rollouts" / "step-00000001.parquet"
    chat = rollout("user: 2+2?", "4", messages=json.dumps([USER]))
    write_rollouts(file, [rollout("2+2?", " 4"), rollout("2+2?", " 4", stop_reason="length"), chat])
    found = scored(reward_model, str(tmp_path / "grpo"))
    whole, talk = expected(reward_model, ("2+2?", " 4"), ([USER], [REPLY]))
    assert [found[0].score, found[2].score] == pytest.approx([whole, talk], abs=1e-5)
    assert found[1].score != pytest.approx(whole, abs=1e-4)
    assert found[1].tokens == found[0].tokens - 1
    assert [each.score for each in scored(reward_model, str(file))] == [each.score for each in found]
    assert found[0].prompt == found[1].prompt != found[2].prompt
    (tmp_path / "eval" / "rollouts").mkdir(parents=True)
    write_rollouts(tmp_path / "eval" / "rollouts" / "step-00000001.parquet", [{"problem_id": "a", "completion": "4"}])
    with pytest.raises(DataError, match="expected the directory of a GRPO stage"):
        scored(reward_model, str(tmp_path / "eval"))


def test_what_is_too_long_is_counted_and_named_and_never_cut(reward_model: str, tmp_path: Path) -> None:
    long = {"prompt": "2+2?", "completion": " 4" * 50}
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "2+2?", "completion": " 4"}, long])
    found = scored(reward_model, source, max_length=40)
    assert [each.score is None for each in found] == [False, True]
    report = report_of(reward_model, source, found)
    assert report["unscored"] == {"count": 1, "first": [f"{source}:2"]}
    assert report["completions"] == 1
    assert f"1 not scored, too long or empty: {source}:2" in "\n".join(report_lines(report))
    with pytest.raises(DataError, match="none of 2 completions could be scored"):
        report_of(reward_model, source, scored(reward_model, source, max_length=3))


def test_a_pair_with_a_side_that_is_too_long_counts_nowhere_else(reward_model: str, tmp_path: Path) -> None:
    good, long = (
        {"prompt": "2+2?", "chosen": " 4", "rejected": " 5"},
        {"prompt": "3?", "chosen": " 4" * 50, "rejected": " 5"},
    )
    source = write_rows(tmp_path / "rows.jsonl", [long, good])
    found = scored(reward_model, source, max_length=40)
    report = report_of(reward_model, source, found)
    assert (report["pairs"], report["completions"]) == (1, 2)
    with pytest.raises(DataError, match="judged as chosen or rejected, not by a column right"):
        report_of(reward_model, source, found, correct="right")
    assert report["unscored"] == {"count": 1, "first": [f"{source}:1 (chosen)"]}


def test_the_report_of_pairs_from_the_command_line(
    reward_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scores.jsonl"
    flags = ["--rows", "40", "--dtype", "float32"]
    assert call("score", reward_model, "nano_longer_wins", *flags, "--out", str(out), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["pairs"], report["completions"], report["longer_chosen"]) == (40, 80, 1.0)
    assert "of 40 pairs as they were judged" in report["verdict"]
    assert report["bias"]["length_per_100_tokens"]["judged"]["slope"] > 0
    rows = lines_of(out)
    assert len(rows) == 40
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert report["accuracy"] == pytest.approx(right / 40)
    assert {"prompt", "chosen", "rejected", "chosen_tokens", "row", "answer"} <= rows[0].keys()
    assert report["highest"][0]["score"] == pytest.approx(
        max(max(r["chosen_score"], r["rejected_score"]) for r in rows)
    )
    assert call("score", reward_model, "nano_longer_wins", *flags) == 0
    text = capsys.readouterr().out
    assert "the reward model's own report: none came with it" in text
    assert report["verdict"] in text
    again = candidates_of(str(out), DataSettings(source=str(out)))
    assert len(again) == 80  # what was written is read again


def test_a_column_of_correctness_stands_beside_the_scores(reward_model: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}+1?", "completion": f" {n + 1 + wrong}", "right": not wrong, "who": "me"}
        for n in range(30)
        for wrong in (0, 1 + n % 3 * 40)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    found = scored(reward_model, source)
    bias = report_of(reward_model, source, found, correct="right")["bias"]
    assert bias["length_per_100_tokens"]["judged"] is not None
    assert "; right itself " in bias["length"]
    assert report_of(reward_model, source, found)["bias"]["length_per_100_tokens"]["judged"] is None
    for name, shown in (("who", "'me'"), ("wrong", "None")):
        with pytest.raises(DataError, match=f"column {name} .* not {shown}; there are right, who"):
            report_of(reward_model, source, found, correct=name)


def test_typed_text(reward_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--prompt", "2+2?", "--completion", " 4", "--completion", " 5", "--dtype", "float32"]
    assert call("score", reward_model, *flags, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["completion"] for each in found] == [" 4", " 5"]
    assert [each["score"] for each in found] == pytest.approx(
        expected(reward_model, ("2+2?", " 4"), ("2+2?", " 5")), abs=1e-5
    )
    assert call("score", reward_model, *flags) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [float(number) for number, _ in lines] == pytest.approx([each["score"] for each in found], abs=1e-4)
    assert [text for _, text in lines] == ["4", "5"]
    assert call("score", reward_model, "--prompt", "2+2?", "--completion", "4", "--chat", "--dtype", "float32") == 0
    (talk,) = expected(reward_model, ([USER], [REPLY]))
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(talk, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        ([], "score takes a source, or a prompt with completions"),
        (["--prompt", "2+2?"], "score takes a source, or a prompt with completions"),
        (["rows.jsonl", "--prompt", "2+2?", "--completion", "4"], "score takes a source, or a prompt with completions"),
        (["rows.jsonl", "--rwos", "3"], "did you mean rows?"),
    ],
)
def test_usage(reward_model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected_text: str) -> None:
    assert call("score", reward_model, *arguments) == 2
    assert expected_text in capsys.readouterr().err


def test_a_policy_is_no_reward_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("score", "nano", "nano_longer_wins", "--rows", "2") == 2
    assert "is a language model, which scores nothing" in capsys.readouterr().err


def test_a_stage_stands_for_its_artifact(tmp_path: Path) -> None:
    assert reward_model_of(str(tmp_path)) == str(tmp_path)
    (tmp_path / "artifact").mkdir()
    assert reward_model_of(str(tmp_path)) == str(tmp_path / "artifact")
    assert reward_model_of("owner/model") == "owner/model"


def test_the_text_of_a_completion_is_what_the_assistant_says() -> None:
    assert text_of("so") == "so"
    assert text_of((REPLY, AGAIN, LAST)) == "4\n\nYes, 4"  # type: ignore[arg-type]

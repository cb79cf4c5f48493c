"""The grading benchmark and the fuzzer: pairs made, times summed up, properties that break are told."""

import json
import random
from pathlib import Path

import pytest

from benchmarks import grading
from benchmarks.rewrites import others, rewrites
from posttrain.rewards.math_answers import Verdict, grade_answer
from tests.rewards import fuzz_grader


def test_rewrites_are_other_texts_of_the_same_value_and_others_are_not() -> None:
    made = dict(rewrites("\\frac{3}{4}+\\sqrt{2}"))
    assert {"dfrac", "slash", "root sign", "LaTeX anew", "typed", "numbers as sums"} <= made.keys()
    assert all(grade_answer(text, "\\frac{3}{4}+\\sqrt{2}").verdict is Verdict.RIGHT for text in made.values())
    assert [text for _, text in others("x^2")] == ["x^3", "x^27", "x^20"]


def test_pairs_are_made_of_the_data_that_is_there(tmp_path: Path) -> None:
    assert list(grading.pair_sets(tmp_path)) == ["own cases"]
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"answer": "6 * 7\n#### 42"}))
    assert grading.pair_sets(tmp_path)["GSM8K, solutions"] == [grading.Pair("42", "6 * 7\n#### 42", True, "gsm8k")]


def test_a_summary_counts_both_kinds_of_wrong_verdicts() -> None:
    pairs = [grading.Pair("1", f"\\boxed{{{n}}}", n == 1, "boxed") for n in (1, 2, 3)]
    verdicts, seconds = grading.measure(lambda pair: pair.response != "\\boxed{1}", pairs)
    found = grading.summary(pairs, verdicts, seconds)
    assert (found["pairs"], found["missed"], found["wrongly_accepted"]) == (3, 1, 2)
    assert grading.measure(grading.ours, pairs)[0] == [True, False, False]
    assert "| s | posttrain | 3 | 1 | 2 |" in grading.table_line("s", "posttrain", found, None)


def test_the_fuzzer_checks_what_it_makes_and_tells_what_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = random.Random(0)
    for _ in range(60):
        fuzz_grader.check(fuzz_grader.mutated(["x^2", "\\frac{1}{2}"], source), "42")
    monkeypatch.setattr("posttrain.rewards.math_answers.grade_answer", lambda text, gold: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuzz_grader.at_random(["x^2"], seconds=5, seed=0)
    assert "gold" in capsys.readouterr().err

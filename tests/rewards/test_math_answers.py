"""Equal rewrites, different values, policies, hostile inputs: what the grader must accept, refuse and survive."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile import HOSTILE
from benchmarks.rewrites import others, rewrites
from posttrain.rewards.math_answers import Policy, Verdict, gold_error, grade, grade_answer, grade_many
from posttrain.rewards.math_answers.limits import MAX_STEPS
from posttrain.rewards.math_answers.structures import Comparison

SHARED = next((up / "shared" / "data" for up in Path(__file__).parents if (up / "shared").is_dir()), Path("shared"))
MATH500, GSM8K = SHARED / "math500" / "test.jsonl", SHARED / "gsm8k"
PROFILES = ["r1_zero", "boxed", "gsm8k", "math", "choice", "lenient"]


def cases() -> list[tuple[str, str, str, str]]:
    lines = Path(__file__).with_name("grading_cases.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(verdict, topic, gold, answer) for verdict, topic, gold, answer in rows]


CASES = cases()


@pytest.mark.parametrize("topic", sorted({topic for _, topic, _, _ in CASES}))
def test_every_case_of_the_corpus_has_its_verdict(topic: str) -> None:
    wrong = [
        (gold, answer, found)
        for verdict, of_topic, gold, answer in CASES
        if of_topic == topic and (found := grade_answer(answer, gold)).verdict != verdict
    ]
    assert wrong == []


def test_the_verdicts_of_the_corpus_are_the_same_in_threads_in_any_order_and_under_any_hash_seed() -> None:
    chosen = [case for case in CASES if "sum" not in case[3]]
    expected = [grade_answer(answer, gold) for _, _, gold, answer in chosen]
    results: list[list] = [[], []]

    def work(index: int) -> None:
        order = chosen if index else list(reversed(chosen))
        results[index] = [grade_answer(answer, gold) for _, _, gold, answer in order]

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] == expected
    assert results[0] == expected[::-1]
    program = (
        "import json, sys; from posttrain.rewards.math_answers import grade_answer; "
        "print(json.dumps([grade_answer(a, g).verdict for g, a in json.load(sys.stdin)]))"
    )
    pairs = json.dumps([(gold, answer) for _, _, gold, answer in chosen])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], input=pairs, env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout) == [found.verdict for found in expected]


@pytest.mark.parametrize(
    ("response", "gold", "verdict"),
    [
        ("2 + 2 is 4. </think> <answer>4</answer>", "4", Verdict.RIGHT),
        ("<think>2 + 2</think>\n<answer> \\boxed{4} </answer>\n", "4", Verdict.RIGHT),
        ("so </think> <answer>5</answer>", "4", Verdict.WRONG),
        ("so 4", "4", Verdict.WRONG),
        ("so </think> <answer>4</answer>", "", Verdict.COULD_NOT_GRADE),
        ("so </think> <answer>4</answer>", "9" * 5000, Verdict.COULD_NOT_GRADE),
        ("so </think> <answer>" + "9" * 5000 + "</answer>", "4", Verdict.COULD_NOT_GRADE),
        ("so </think> <answer>1e999999</answer>", "4", Verdict.COULD_NOT_GRADE),
        ("so </think> <answer>9^{9^{9^9}}</answer>", "4", Verdict.COULD_NOT_GRADE),
    ],
)
def test_three_verdicts(response: str, gold: str, verdict: Verdict) -> None:
    assert grade(response, gold).verdict is verdict


@pytest.mark.parametrize("text", ["9^{9^{9^9}}", "x" * 5000, "10^{10^{10}}!"])
def test_an_answer_out_of_bounds_is_right_when_it_is_the_gold_letter_for_letter(text: str) -> None:
    assert grade_answer(text, "42").verdict is Verdict.COULD_NOT_GRADE
    if gold_error(text) is None:
        assert grade_answer(text, text).verdict is Verdict.RIGHT


def test_a_grade_carries_its_evidence() -> None:
    response = "so </think> <answer> \\tfrac12 </answer>"
    found = grade(response, "0.25")
    assert (found.rule, found.extracted, found.reason) == ("r1_zero", "\\tfrac12", "the values differ")
    assert (found.gold_form, found.answer_form) == ("0.25", "frac 12")
    assert found.span is not None
    assert response[slice(*found.span)] == "\\tfrac12"
    assert grade(response, "0.5").reason == "equal by exact numbers"
    assert grade_answer("\\sqrt8", "2\\sqrt2").reason == "equal by decimals at two precisions"


def test_policies_change_what_they_say_and_nothing_else() -> None:
    assert grade_answer("(c)", "C").verdict is Verdict.WRONG
    assert grade_answer("(c)", "C", policy=Policy(lower_case_choices=True)).verdict is Verdict.RIGHT
    assert grade_answer("1/3", "0.33").verdict is Verdict.WRONG
    assert grade_answer("1/3", "0.33", policy=Policy(round_to_gold=True)).verdict is Verdict.RIGHT
    assert grade_answer("0.336", "0.33", policy=Policy(round_to_gold=True)).verdict is Verdict.WRONG
    assert grade("it is 42", "42", profile="lenient").verdict is Verdict.WRONG
    assert grade("it is 42", "42", profile="lenient", policy=Policy(last_number=True)).verdict is Verdict.RIGHT
    open_thought = "<think> it is \\boxed{42}"
    assert grade(open_thought, "42", profile="lenient").verdict is Verdict.WRONG
    assert grade(open_thought, "42", profile="lenient", policy=Policy(inside_thinking=True)).verdict is Verdict.RIGHT


def test_many_responses_are_graded_in_their_places() -> None:
    found = grade_many(["\\boxed{1}", "\\boxed{2}"], ["1", "1"], profile="boxed")
    assert [each.verdict for each in found] == [Verdict.RIGHT, Verdict.WRONG]
    with pytest.raises(ValueError, match="zip"):
        grade_many(["1"], ["1", "2"])


def test_golds_of_gsm8k_and_math_solutions_are_read() -> None:
    assert grade_answer("18", "Janet makes 9 * 2 = <<9*2=18>>18.\n#### 18").verdict is Verdict.RIGHT
    assert grade_answer("1/2", r"Thus $x = \boxed{\frac12}$.").verdict is Verdict.RIGHT
    assert gold_error("#### 18") is None
    assert gold_error(" ") == "the gold answer is empty"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_never_right_and_never_raises(name: str) -> None:
    text = HOSTILE[name]
    for frame in ("{}", "\\boxed{{{}}}", "</think> <answer>{}</answer>", "#### {}"):
        for profile in PROFILES:
            assert grade(frame.format(text), "42", profile=profile).verdict is not Verdict.RIGHT
    for gold in ("42", "3\\sqrt{13}", "x^2+1", "(1,2)", "\\sin x"):
        assert grade_answer(text, gold).verdict is not Verdict.RIGHT
    assert grade_answer("42", text).verdict is not Verdict.RIGHT
    assert grade_answer(f"({text})+x-x", text).verdict in Verdict


def test_the_steps_of_a_grade_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = []

    def spend(self, steps: int) -> None:
        self.left -= steps
        spent.append(self.left)
        assert self.left >= -MAX_STEPS

    monkeypatch.setattr("posttrain.rewards.math_answers.limits.Steps.spend", spend)
    grade_answer("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}")
    assert 100 < MAX_STEPS - min(spent) < 1000
    assert Comparison().steps.left == MAX_STEPS


PIECES = re.findall(
    r"\S+",
    r"\frac \sqrt \sin \ln \log _2 { } ( ) [ ] | , ; : \boxed{ </think> <answer> </answer> #### - + * / = < \le ~ 1 42 "
    r"0 . ! % \pm \cup \in \begin{pmatrix} \end{pmatrix} & \\ ½ ² √ π answer is e9 x y i e \pi \infty \text{ and or cm "
    r"^ _ $ ' ^\circ \{ \} \sum \int dx \lim \to \overline \mathrm{ 1,000 million \left \right. \binom",
)
any_text = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, " ", "\n"])).map("".join))


@settings(max_examples=400, deadline=None)
@given(any_text, any_text, st.sampled_from(PROFILES), st.booleans())
def test_no_text_raises(response: str, gold: str, profile: str, truncated: bool) -> None:
    found = grade(response, gold, profile=profile, truncated=truncated)
    if found.span is not None:
        assert 0 <= found.span[0] <= found.span[1] <= len(response)
    assert found.verdict is not Verdict.RIGHT or found.extracted is not None
    assert grade_answer(response, gold).verdict in Verdict


@settings(max_examples=400, deadline=None)
@given(any_text)
def test_every_usable_gold_equals_itself(text: str) -> None:
    if gold_error(text) is None and "####" not in text and "boxed" not in text:
        assert grade_answer(f" {text} ", text).verdict is Verdict.RIGHT


leaves = st.sampled_from(["2", "3", "7", "x", "y", r"\pi", "0.5", r"\frac{1}{3}", "10^{20}", "i"])
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]})+({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]})({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
        inner.map(lambda part: rf"\sqrt{{{part}}}"),
        inner.map(lambda part: f"({part})^2"),
        inner.map(lambda part: f"-({part})"),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(expressions, expressions)
def test_equality_of_expressions_is_reflexive_and_symmetric(first: str, second: str) -> None:
    same = grade_answer(f"0+{first}", first).verdict
    assert same is not Verdict.WRONG or "frac" in first or "sqrt" in first  # 1/(x-x) equals nothing
    there, back = grade_answer(first, second), grade_answer(second, first)
    assert there.verdict == back.verdict


@settings(max_examples=150, deadline=None)
@given(expressions)
def test_one_more_is_another_value(text: str) -> None:
    assert grade_answer(f"({text})+1", text).verdict is not Verdict.RIGHT
    assert grade_answer(f"({text})+10^{{-30}}", text).verdict is not Verdict.RIGHT


def golds_of_math500() -> list[str]:
    if not MATH500.is_file():
        pytest.skip("the MATH-500 answers are not beside the repository")
    return [json.loads(line)["answer"] for line in MATH500.read_text(encoding="utf-8").splitlines()]


def test_every_math500_answer_equals_itself_boxed_and_its_exact_rewrites() -> None:
    missed, made = [], 0
    for gold in golds_of_math500():
        assert gold_error(gold) is None
        assert grade(rf"so it is $\boxed{{{gold}}}$.", gold, profile="boxed").verdict is Verdict.RIGHT
        for kind, text in rewrites(gold):
            made += 1
            if grade_answer(text, gold).verdict is not Verdict.RIGHT:
                missed.append((kind, gold, text))
    assert made > 4500
    assert missed == []


def test_no_other_value_passes_for_a_math500_answer() -> None:
    golds = golds_of_math500()
    passed = [(gold, text) for gold in golds for _, text in others(gold) if grade_answer(text, gold).verdict == "right"]
    assert passed == []
    found = {(a, b) for a in golds[:150] for b in golds[:150] if a < b and grade_answer(b, a).verdict == "right"}
    assert found == {("120", "120^\\circ"), ("5", "x=5")}


def test_every_gsm8k_answer_is_read_as_a_whole_number_and_takes_no_other() -> None:
    if not GSM8K.is_dir():
        pytest.skip("GSM8K is not beside the repository")
    lines = [line for part in ("train", "test") for line in (GSM8K / f"{part}.jsonl").read_text().splitlines()]
    golds = [json.loads(line)["answer"] for line in lines]
    assert len(golds) == 8792
    for gold in golds:
        value = int(gold.rpartition("####")[2].replace(",", ""))
        found = [grade_answer(text, gold).verdict for text in (str(value), f"${value:,}.00", str(value + 1))]
        assert found == [Verdict.RIGHT, Verdict.RIGHT, Verdict.WRONG], gold

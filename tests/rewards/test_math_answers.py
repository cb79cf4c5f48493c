"""Equal rewrites, different values, hostile inputs: what the grader must accept, refuse and survive."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rewards.answers import equal, parse
from posttrain.rewards.math_answers import Verdict, gold_error, grade, grade_answer
from posttrain.rewards.numbers import OutOfBounds

EQUAL = [
    (r"\frac{14}{3}", "14/3"),
    (r"\frac 59", "5/9"),
    (r"\frac{1}{2}", r"\tfrac12"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
    (r"1\frac{4}{5}", "9/5"),
    (r"1\frac45", "1.8"),
    (r"-1\frac45", "-9/5"),
    ("7/2", "3½"),
    (r"10,\!080", "10080"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("1000000", "1{,}000{,}000"),
    (r"\$32,\!348", "$32348"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("0.5", "50%"),
    (r"90^\circ", "90°"),
    (r"90^{\circ}", "90 degrees"),
    (r"\text{(C)}", "C"),
    ("C", "C) 42"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("x \\in [-2,7]", "[-2, 7]"),
    ("3, 5, 7", "7,5,3"),
    ("1,-2", r"1 \text{ and } -2"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1-\sqrt5,1+\sqrt5\}"),
    (r"(0,9) \cup (9,36)", r"\left(9,36\right)\cup(0,9)"),
    ("[0,1)", r"\left[0, 1\right)"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"5.4 \text{ cents}", "5.4"),
    ("18", "18 eggs"),
    ("60", "60 miles per hour"),
    ("8.7e8", "870000000"),
    (r"6.02\times10^{23}", "602000000000000000000000"),
    ("0.001", "10⁻³"),
    ("42", "42."),
    ("42", "{42}"),
    ("42", r"\( 42 \)"),
    ("42", r"\mathbf{42}"),
    (".5", "+0.50"),
    ("0", "-0"),
    (r"\text{Evelyn}", "evelyn"),
    ("x^2", "x²"),
    (r"3\sqrt{13}", r"3 \sqrt{13}"),
    (r"52_8", "52_{8}"),
    ("9" * 3000, "9" * 3000 + ".0"),
]

DIFFERENT = [
    ("40_9", "40_{10}"),
    ("42", "42_5"),
    ("1e-7", "2e-7"),
    (".0000672", ".0000673"),
    ("3.6e-10", "0"),
    ("1000000", "1000001"),
    ("9007199254740993", "9007199254740992"),
    (f"1/{2**99}", f"1/{2**98}"),
    ("1/3", "0.333"),
    ("0.5", "50"),
    ("3R^2", "3r^2"),
    ("m", "M"),
    ("(1,2)", r"\{1,2\}"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    (r"\{1,1,2\}", r"\{1,2,2\}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 \end{pmatrix}", r"\begin{vmatrix} 1 \end{vmatrix}"),
    ("1", "x+z=1"),
    ("N=n", "N=n+1"),
    ("x=5", "y=5"),
    ("42", "41 = 42"),
    ("42", r"\neq 42"),
    ("42", "> 42"),
    ("12", "1 2"),
    ("(312,123)", "312123"),
    ("-1/2", "-1 1/2"),
    ("15^2", "15 cm^2"),
    ("15", "15^2"),
    ("41", "42 is wrong, it is 41"),
    ("42", "42 is wrong"),
    ("a+1", "d+1"),
    ("a/c", "b/c"),
    ("5", "5 million"),
    ("5", "5 millions"),
    ("3", "3 halves"),
    ("3", "3 fifths"),
    ("5", "5x"),
    ("42", "42 or 43"),
    ("42", r"\{42, 43\}"),
    ("42", "4²"),
    ("C", "C) or D)"),
    ("1", "1/0"),
    ("42", ""),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_rewrites_of_a_value_are_right(gold: str, answer: str) -> None:
    assert grade_answer(answer, gold) == (Verdict.RIGHT, "")


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_values_are_wrong(gold: str, answer: str) -> None:
    assert grade_answer(answer, gold)[0] is Verdict.WRONG


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
    ],
)
def test_three_verdicts(response: str, gold: str, verdict: Verdict) -> None:
    assert grade(response, gold).verdict is verdict


def test_an_answer_out_of_bounds_is_right_when_it_is_the_gold_letter_for_letter() -> None:
    tower = "9^{9^{9^9}}"
    assert grade_answer(tower, tower)[0] is Verdict.RIGHT
    assert grade_answer(tower, "42")[0] is Verdict.WRONG


def test_a_grade_carries_its_evidence() -> None:
    response = "so </think> <answer> 4 </answer>"
    found = grade(response, "5")
    assert (found.rule, found.extracted, found.reason) == ("r1_zero", "4", "the values differ")
    assert found.span is not None
    assert response[slice(*found.span)] == "4"


def test_golds_of_gsm8k_and_math_solutions_are_read() -> None:
    assert grade_answer("18", "Janet makes 9 * 2 = <<9*2=18>>18.\n#### 18")[0] is Verdict.RIGHT
    assert grade_answer("1/2", r"Thus $x = \boxed{\frac12}$.")[0] is Verdict.RIGHT
    assert gold_error("#### 18") is None
    assert gold_error(" ") == "the gold answer is empty"


HOSTILE = [
    "\\boxed{" * 20000,
    "{" * 4000,
    "(" * 2000 + "1" + ")" * 2000,
    "\\{1," * 200 + "\\}" * 200,
    "9" * 4096,
    "9^{9^{9^9}}",
    " " * 100_000,
    "answer:" * 20000,
    "answer" + " " * 100_000 + "x",
    "<think>" * 20000,
    "<answer>" * 10000 + "</answer>" * 10000,
    "####" * 30000,
    "1" + "a" * 4000,
    "1aaa" * 1000,
    "," * 4000,
    "1,000" * 20000,
    "\\pm" * 1000,
    "x\\in" * 1000,
    "\\frac" * 800,
    "\\text{" * 700,
    "\x00\ud800",
    "٤٢",
]


@pytest.mark.parametrize("profile", ["r1_zero", "boxed", "gsm8k", "lenient"])
def test_hostile_text_is_never_right_and_never_slow(profile: str) -> None:
    started = time.process_time()
    for text in HOSTILE:
        for frame in ("{}", "\\boxed{{{}}}", "</think> <answer>{}</answer>", "#### {}"):
            assert grade(frame.format(text), "42", profile=profile).verdict is not Verdict.RIGHT
        assert grade_answer("42", text)[0] is not Verdict.RIGHT
    assert time.process_time() - started < 20  # of CPU; measured under 1 s, and one quadratic step takes minutes


PIECES = re.findall(
    r"\S+",
    r"\frac { } ( ) [ ] , \boxed{ </think> <answer> </answer> #### - 1 42 . % \pm \cup = x \begin{pmatrix}"
    r" \end{pmatrix} & \\ ½ ² answer is e9 / \text{ and ^ _ $ 0",
)
any_text = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, " ", "\n"])).map("".join))


@settings(max_examples=400, deadline=None)
@given(any_text, any_text, st.sampled_from(["r1_zero", "boxed", "gsm8k", "lenient"]), st.booleans())
def test_no_text_raises(response: str, gold: str, profile: str, truncated: bool) -> None:
    found = grade(response, gold, profile=profile, truncated=truncated)
    if found.span is not None:
        assert 0 <= found.span[0] <= found.span[1] <= len(response)
    assert found.verdict is not Verdict.RIGHT or found.extracted is not None


@settings(max_examples=300, deadline=None)
@given(any_text)
def test_every_structure_equals_itself(text: str) -> None:
    try:
        parsed = parse(text)
    except OutOfBounds:
        return
    assert equal(parsed, parsed)
    assert equal(parsed, parse(f" {text} "))


def test_math500_answers_equal_themselves_and_no_other() -> None:
    file = Path(__file__).parents[3] / "shared" / "data" / "math500" / "test.jsonl"
    if not file.is_file():
        pytest.skip("the MATH-500 answers are not on this machine")
    golds = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    for gold in golds:
        assert gold_error(gold) is None
        assert grade_answer(f" {gold.replace('frac', 'dfrac').replace('ddfrac', 'dfrac')} .", gold)[0] is Verdict.RIGHT
    found = {(a, b) for a in golds[:150] for b in golds[:150] if a < b and grade_answer(b, a)[0] is Verdict.RIGHT}
    assert found == {("120", "120^\\circ"), ("5", "x=5")}

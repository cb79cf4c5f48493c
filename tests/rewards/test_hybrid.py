"""The hybrid reward, worked by hand, and the same out of its parts."""

import pytest

from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import REWARDS
from posttrain.rewards.functions import built_in_rewards
from posttrain.rewards.hybrid import HYBRID_PARTS, hybrid
from posttrain.rewards.scoring import score
from posttrain.settings import RewardOptions

GOLD = "She has 1,234 dollars.\n#### 1,234"
LONG = "x" * 101
CASES = [
    (r"\boxed{1234}", 1.5),
    (r"\boxed{\$1,234.00}", 1.5),
    ("#### $1,234", 1.0),
    ("€1234", 0.0),
    (r"First, add. Therefore \boxed{1234}", 1.7),
    (rf"Step 1: {LONG} \boxed{{1234}}", 1.9),
    (rf"Step 1: {LONG} \boxed{{7}}", 0.9),  # the heuristics alone: this is what can be gamed
    (r"\boxed{1234.0000005}", 1.5),
    (r"\boxed{1234.00001}", 0.5),
    (r"\boxed{}", 0.0),
    (LONG, 0.2),
    ("", 0.0),
    (r"#### 7 \boxed{1234}", 1.5),  # the box is read before what stands after ####
    (r"\boxed{1e999999}", 0.5),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_hybrid(text: str, expected: float) -> None:
    assert hybrid(["p"], [text], answer=[GOLD]) == [pytest.approx(expected)]


def test_without_a_number_as_gold_nothing_can_be_said() -> None:
    assert hybrid(["p"] * 3, [LONG] * 3, answer=[None, "blue", "4"]) == [None, None, pytest.approx(0.2)]


def test_its_parts_add_up_to_it() -> None:
    prompt = Prompt("a", (1,), "?", {"answer": GOLD})
    group = [Completion((5,), (-0.1,), StopReason.EOS, text) for text, _ in CASES]
    whole = score([prompt], [group], {"hybrid": 1.0}, REWARDS)
    parts = score([prompt], [group], HYBRID_PARTS, built_in_rewards(RewardOptions(), 64))
    assert [each.reward for each in parts] == pytest.approx([each.reward for each in whole])
    assert set(parts[5].scores.values()) == {1.0}

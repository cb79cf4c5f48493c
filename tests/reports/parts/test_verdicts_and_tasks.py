"""Verdict, scores, tasks, win rates and completions, on models whose truth is planted."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.reports.contrasts import compare_tasks
from posttrain.reports.inputs import Evaluation, Inputs, Model
from posttrain.reports.part import Part
from posttrain.reports.parts.examples import examples_part
from posttrain.reports.parts.scores import scores_part
from posttrain.reports.parts.tasks import CAREFUL, FAR, SAME, group_of, tasks_part
from posttrain.reports.parts.verdict import verdict_part
from posttrain.reports.parts.win_rates import win_rates_part
from posttrain.reports.report import build_report
from tests.reports.parts.made_up import course, evaluation, inputs, model, sample, strict_json, texts

PROBLEMS = 200
PROXY: Mapping[str, Any] = {"scores": {"reward_model": 1.0}}


def answers(
    name: str, right: float, *, reward: float = 0.0, tokens: int = 20, seed: int = 0, **summary: Any
) -> Evaluation:
    """An evaluation on the nano task, right on this share of the problems, scored around `reward` by a reward model."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(0, 0.3, PROBLEMS)
    lengths = draw.integers(tokens - 5, tokens + 6, PROBLEMS)
    rows = []
    for i in range(PROBLEMS):
        paid = reward + float(noise[i])
        rows.append(
            sample(f"p{i:03d}", right=i < right * PROBLEMS, tokens=int(lengths[i]))
            | {"reward": paid, "rewards/reward_model": paid}
        )
    return evaluation(name, rows, **PROXY, **summary)


def trained(name: str, found: Evaluation, *, start: str | None = "sft") -> Model:
    settings = {"data": {"source": "nano"}}
    made = course([], settings=settings, path=Path("runs/made_up") / name)
    return replace(model(name, found, courses=[made]), start=start)


def demo(*others: Model) -> Inputs:
    """A base, an SFT model, and what else is compared."""
    base = model("base", answers("base", 0.1, reward=-7))
    sft = trained("sft", answers("sft", 0.5, reward=-6, seed=1), start="base")
    return inputs(base, sft, *others)


def parts_of(found: Inputs) -> dict[str, Part]:
    return {part.key: part for part in build_report(found, compare_tasks(found)).parts}


def test_each_model_is_compared_with_the_baseline_and_with_its_start() -> None:
    found = demo(trained("dpo", answers("dpo", 0.7, reward=-6)), trained("grpo", answers("grpo", 0.9, reward=-6)))
    part = verdict_part(found, compare_tasks(found))
    said = texts(part)
    assert sum("than base" in text for text in said) == 3
    assert [text.split(":")[0] for text in said if "than sft" in text] == [
        "dpo is better than sft", "grpo is better than sft",
    ]  # fmt: skip
    assert any("sft, dpo, grpo: of a single seed" in text for text in said)
    assert "(5 tests)" in part.tables[0].caption
    assert strict_json(part)["baseline"] == "base"


def test_a_reward_that_rises_while_right_answers_fall_is_named() -> None:
    found = demo(trained("gamed", answers("gamed", 0.2, reward=-2, seed=2)))
    part = tasks_part(found, compare_tasks(found))
    (warning,) = [finding for finding in part.findings if finding.tone == "warning"]
    assert warning.text.startswith("gamed beside sft: suspected hacking: the proxy rose and gold fell")
    named = {entry["model"]: entry["named"] for entry in strict_json(part)["suspected_hacking"]}
    assert named == {"sft": False, "gamed": True}
    assert any("gamed -2" in figure.alt and "suspected hacking" in figure.alt for figure in part.figures)
    verdict = parts_of(found)["verdict"]
    assert warning.text in texts(verdict)  # what a part warns of, the verdict repeats


def test_healthy_runs_are_not_named() -> None:
    found = demo(
        trained("grpo", answers("grpo", 0.9, reward=-2, seed=2)), trained("flat", answers("flat", 0.5, seed=3))
    )
    healthy = replace(found, models=found.models[:3])
    assert not [f for f in tasks_part(healthy, compare_tasks(healthy)).findings if f.tone == "warning"]


def test_other_rewards_are_not_set_beside_each_other() -> None:
    other = answers("gamed", 0.2, reward=-2, seed=2)
    other = replace(other, summary={**other.summary, "scores": {"hybrid": 1.0}})
    found = demo(trained("gamed", other))
    assert {e["model"] for e in tasks_part(found, compare_tasks(found)).data["suspected_hacking"]} == {"sft"}
    assert "gamed" not in win_rates_part(found, compare_tasks(found)).data["nano"]["models"]


def test_tasks_stand_in_groups() -> None:
    rows = [sample(f"q{i}", right=i % 2 == 0) for i in range(20)]
    refusals = evaluation("base", rows, task="over_refusal")
    far = evaluation("base", rows, task="gsm8k")
    own = evaluation("base", rows, task="mine", source="nano")
    base = Model("base", {"nano": answers("base", 0.1), "gsm8k": far, "over_refusal": refusals, "mine": own})
    found = inputs(base, trained("sft", answers("sft", 0.5), start="base"))
    assert [group_of(found, task) for task in found.tasks] == [SAME, FAR, CAREFUL, SAME]


def test_win_rates_at_equal_length_tell_length_from_preference() -> None:
    found = demo(trained("longer", answers("longer", 0.5, reward=-5, tokens=90, seed=4)))
    part = win_rates_part(found, compare_tasks(found))
    rate = strict_json(part)["nano"]["models"]["longer"]
    assert rate["raw"] == 1.0
    assert rate["controlled_low"] < 0.5  # never as long as the baseline's: nothing says who would win then
    assert any(text.startswith("longer wins 100%") and "its length may be what wins" in text for text in texts(part))


def compared(name: str, right: float, first: float, second: float, *, seed: int) -> Evaluation:
    """Answers whose judge gives each the same parts of its comparisons, by the order in which it was shown."""
    found = answers(name, right, seed=seed)
    orders = {"judge_shown_first": first, "judge_shown_second": second}
    return replace(found, samples=[{**row, **orders} for row in found.samples])


@pytest.mark.parametrize(
    ("second", "said"),
    [(0.2, "prefers the first answer for its place: the one shown first wins 75.0%"), (0.7, "no position bias")],
)
def test_a_judge_that_goes_by_the_order_is_named(second: float, said: str) -> None:
    base, sft = (
        compared(name, right, 0.7, second, seed=i) for i, (name, right) in enumerate((("base", 0.1), ("sft", 0.5)))
    )
    found = inputs(model("base", base), trained("sft", sft, start="base"))
    part = win_rates_part(found, compare_tasks(found))
    assert any(said in text for text in texts(part))
    assert strict_json(part)["nano"]["first_shown_rate"]["mean"] == pytest.approx((0.7 + 1 - second) / 2)


def test_a_judge_is_held_against_the_grade() -> None:
    """Of 100 prompts that sft alone gets right, a reward that is drawn by chance prefers about half of its answers."""
    found = demo(trained("knows", answers("knows", 0.6, reward=-5, seed=3)))
    part = win_rates_part(found, compare_tasks(found))
    agreed = strict_json(part)["nano"]["models"]
    assert agreed["knows"]["agreement"]["prompts"] == 100
    assert agreed["knows"]["agreement"]["accuracy"]["mean"] == 1.0
    assert part.tables[0].headers[-1] == "agrees with the grade"
    assert not any("no judge of this task" in text for text in texts(part))
    gamed = demo(trained("gamed", answers("gamed", 0.0, reward=-2, seed=2)))
    said = texts(win_rates_part(gamed, compare_tasks(gamed)))
    (finding,) = [text for text in said if text.endswith("It is no judge of this task.")]
    assert "gamed 0% of 20" in finding
    scored = [
        replace(found.models[i], evaluations={"nano": replace(e, summary={**e.summary, "scorer": {"score": "reward"}})})
        for i, e in enumerate(each.evaluations["nano"] for each in found.models)
    ]
    own = replace(found, models=tuple(scored))
    part = win_rates_part(own, compare_tasks(own))
    assert "agreement" not in strict_json(part)["nano"]["models"]["knows"]
    assert part.tables[0].headers[-1] == "ties"


def test_win_rates_need_rewards() -> None:
    found = inputs(*(model(name, evaluation(name, [sample("a", right=True), sample("b")])) for name in ("base", "sft")))
    part = win_rates_part(found, compare_tasks(found))
    assert "posttrain eval --rewards.reward_model 1.0" in part.absent
    assert not part.figures


def test_completions_are_chosen_by_rule_and_counted() -> None:
    found = demo(trained("gamed", answers("gamed", 0.2, reward=-2, seed=2)))
    part = examples_part(found, compare_tasks(found))
    counts = strict_json(part)["nano"]["gamed"]
    assert (counts["fixed"], counts["lost"], counts["both_right"], counts["both_wrong"]) == (20, 0, 20, 160)
    titles = [example.title for example in part.examples if example.title.startswith("gamed")]
    assert titles[0] == "gamed on nano: largest gain"
    assert "gamed on nano: highest reward with nothing right" in titles
    assert [label for label, _ in part.examples[0].texts] == ["prompt", "gold", "base", "sft"]


def test_scores_have_a_dot_for_each_seed() -> None:
    seeds = replace(answers("grpo", 0.9), seed_scores=(0.85, 0.95))
    found = demo(trained("grpo", seeds))
    part = scores_part(found, compare_tasks(found))
    assert strict_json(part)["nano"]["grpo"]["seeds"] == [0.85, 0.95]


def test_the_whole_report_is_strict_json_with_unique_figures() -> None:
    found = demo(trained("gamed", answers("gamed", 0.2, reward=-2, seed=2)))
    report = build_report(found, compare_tasks(found))
    names = [figure.name for part in report.parts for figure in part.figures]
    assert len(set(names)) == len(names)
    for part in report.parts:
        json.dumps(part.data, allow_nan=False)
        assert bool(part.absent) != bool(part.findings or part.figures or part.tables or part.examples or part.data)


@pytest.mark.parametrize("order", [("base", "sft", "gamed"), ("gamed", "sft", "base")])
def test_the_order_of_models_changes_no_verdict(order: tuple[str, ...]) -> None:
    found = demo(trained("gamed", answers("gamed", 0.2, reward=-2, seed=2)))
    ordered = replace(found, models=tuple(found.model(name) for name in order))
    results = {m.name: m for m in compare_tasks(ordered)["nano"].models}
    assert results["gamed"].against_start is not None
    assert results["gamed"].against_start.reference == "sft"
    assert results["gamed"].against_start.verdict == "worse"
    assert results["sft"].against_start is None

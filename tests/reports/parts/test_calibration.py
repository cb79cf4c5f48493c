"""Reward models: weak and biased ones are named, good ones are not, and the policy's own answers are asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from posttrain.reports.inputs import Evaluation, Inputs
from posttrain.reports.parts.calibration import calibration_part, ordering
from posttrain.reports.style import png
from tests.reports.parts.directories import write_reward_model
from tests.reports.parts.made_up import course, evaluation, inputs, model, sample, strict_json, texts

EVALUATED = evaluation("sft", [sample(f"p{i}") for i in range(4)])


def trained_against(stage: Path) -> Inputs:
    """Return a policy whose settings name a reward model by a path that is gone, beside which it stands now."""
    policy = course(
        [{"step": 1, "reward": 1.0}],
        settings={"reward_model": f"elsewhere/{stage.name}/artifact"},
        path=stage.parent / "grpo",
    )
    return inputs(model("sft", EVALUATED), model("grpo", EVALUATED, courses=[policy]))


def scored(quality: float, *, problems: int = 60) -> Evaluation:
    """Return an evaluation whose reward model scores right answers higher by `quality`, on average."""
    draw = np.random.default_rng(3)
    return evaluation(
        "grpo",
        [
            sample(f"p{i}", j, right=j < 2) | {"rewards/reward_model": float(quality * (j < 2) + draw.normal())}
            for i in range(problems)
            for j in range(4)
        ],
    )


def test_a_good_reward_model_is_no_alarm(tmp_path: Path) -> None:
    write_reward_model(tmp_path / "rm", quality=1.0, love_of_length=0.0)
    part = calibration_part(trained_against(tmp_path / "rm"))
    (finding,) = part.findings
    found = strict_json(part)["models"]["rm"]
    assert finding.tone == "note"
    assert finding.text.startswith(f"rm is better than chance: it orders {found['held_out']['accuracy']:.1%}")
    assert found["training_accuracy"] == pytest.approx(0.9)
    assert all(png(figure.draw) for figure in part.figures)


def test_a_weak_one_is_named_as_noise(tmp_path: Path) -> None:
    write_reward_model(tmp_path / "rm", quality=0.0, love_of_length=0.0)
    (finding,) = calibration_part(trained_against(tmp_path / "rm")).findings
    assert finding.tone == "warning"
    assert "rm is no better than chance: it orders " in finding.text
    assert "a policy trained against it learns noise" in finding.text


def test_one_that_likes_length_is_named_with_its_slope(tmp_path: Path) -> None:
    write_reward_model(tmp_path / "rm", quality=1.0, love_of_length=3.0)
    part = calibration_part(trained_against(tmp_path / "rm"))
    told = strict_json(part)["models"]["rm"]["held_out"]
    first, bias = texts(part)
    assert f"In {100 * told['prefers_longer']:.1f}% of the pairs it chooses the longer answer" in first
    assert bias.startswith("rm prefers longer answers: +")
    assert part.findings[1].tone == "warning"


@pytest.mark.parametrize(("quality", "tone"), [(2.0, "note"), (-2.0, "warning"), (0.0, None)])
def test_answers_that_it_scored_in_an_evaluation_say_whether_it_still_orders_them(
    tmp_path: Path, quality: float, tone: str | None
) -> None:
    write_reward_model(tmp_path / "rm", quality=1.0, love_of_length=0.0)
    named = {"reward_model": str(tmp_path / "rm/artifact")}
    part = calibration_part(inputs(model("grpo", replace(scored(quality), settings=named))))
    (claim,) = strict_json(part)["claims"]
    assert claim["holds"] == (tone is not None)
    assert [finding.tone for finding in part.findings[1:]] == ([] if tone is None else [tone])
    found = strict_json(part)["models"]["rm"]["answers"]["grpo on nano"]
    assert found["prompts"] == 60
    assert f"{100 * found['accuracy']:.1f}%" in claim["text"]


def test_a_tie_is_half_and_prompts_with_one_kind_of_answer_say_nothing() -> None:
    scores = {("a", True): 1.0, ("a", False): 1.0, ("b", True): 2.0, ("b", False): 1.0}
    rows = [
        sample(problem, int(right), right=right) | {"rewards/reward_model": score}
        for (problem, right), score in scores.items()
    ]
    rows += [sample("c", j, right=True) | {"rewards/reward_model": 0.0} for j in range(2)]
    assert ordering(evaluation("x", rows)).tolist() == [0.5, 1.0]
    assert len(ordering(EVALUATED)) == 0


def test_a_reward_model_without_a_report_is_said_to_have_none(tmp_path: Path) -> None:
    part = calibration_part(trained_against(tmp_path / "rm"))
    assert "comes without a report on held-out pairs" in texts(part)[0]
    assert part.figures == ()


def test_two_of_one_name_are_told_apart_by_their_runs(tmp_path: Path) -> None:
    models = []
    for run in ("a", "b"):
        write_reward_model(tmp_path / run / "rm", quality=1.0, love_of_length=0.0)
        models += trained_against(tmp_path / run / "rm").models[1:]
    assert list(strict_json(calibration_part(inputs(*models)))["models"]) == ["a/rm", "b/rm"]


def test_without_a_reward_model_the_part_says_how_to_train_one() -> None:
    assert "posttrain rm" in calibration_part(inputs(model("sft", EVALUATED))).absent

"""The part of over-optimisation: what it says of a gamed and of a healthy run, what it draws, where it is absent."""

import json
from pathlib import Path

import numpy as np
import pytest

from posttrain.evals.frontier import frontier
from posttrain.reports.inputs import Inputs, Model
from posttrain.reports.lineage import every_stage
from posttrain.reports.parts.frontier import frontier_part, part_of_frontiers, read_frontiers
from posttrain.reports.style import LIGHT, svg
from posttrain.runs.logs import plain
from tests.reports.parts.directories import write_stage


def followed(accuracies: list[float], proxies: list[float], prompts: int = 60) -> dict[str, object]:
    """Return the content of a frontier.json of policies with these means, four steps apart."""
    draw = np.random.default_rng(0)
    policies = {}
    for place, (accuracy, proxy) in enumerate(zip(accuracies, proxies, strict=True)):
        policies[4 * place] = [
            {
                "problem_id": f"{problem:03}",
                "sample": sample,
                "num_tokens": 30,
                "reward": draw.normal(proxy, 1.0),
                "score": float(draw.uniform() < accuracy),
                "policy_logprob": place**2 - 20.0 + draw.normal(0, 0.1) * (place > 0),
                "ref_logprob": -20.0,
            }
            for problem, sample in np.ndindex(prompts, 4)
        ]
    return json.loads(json.dumps(plain(frontier(policies, gold="score"))))


GAMED = followed([0.5, 0.8, 0.5, 0.1], [0.0, 1.0, 3.0, 5.0])
HEALTHY = followed([0.4, 0.6, 0.8, 0.8], [0.0, 0.3, 0.6, 0.7])


def test_a_gamed_run_is_warned_of_and_a_healthy_one_is_not() -> None:
    part = part_of_frontiers({"gamed": GAMED, "healthy": HEALTHY}, order=["sft", "gamed", "healthy"])
    assert [finding.tone for finding in part.findings] == ["warning", "note"]
    assert part.findings[0].text.startswith("gamed: over-optimised: gold peaked at step 4 (KL 1) and fell by 0.")
    assert part.findings[1].text.startswith("healthy: gold holds: +0.")
    assert part.data["gamed"]["peak"] == 4
    assert "does not measure how hard was optimised" in part.note


def test_the_table_has_every_policy_and_best_of_n_behind_them() -> None:
    (table,) = part_of_frontiers({"gamed": GAMED}).tables
    names = ["start", "step 4", "step 8", "step 12", "best of 2", "best of 3", "best of 4"]
    assert [row[0].text for row in table.rows] == names
    assert table.rows[0][1].text == "0.00"
    assert table.rows[5][1].text == "0.43"  # log 3 - 2/3
    assert table.caption == ""  # too few points to fit


def test_fits_stand_under_the_table_where_there_are_points_enough() -> None:
    (table,) = part_of_frontiers({"gamed": followed([0.5, 0.7, 0.8, 0.6, 0.3], [0.0, 1.0, 2.0, 3.0, 4.0])}).tables
    assert "with d = √KL: policies: d (0." in table.caption


@pytest.mark.parametrize("found", [GAMED, followed([0.5, 0.6], [0.0, 1.0], prompts=1)], ids=["many", "one prompt"])
def test_the_figure_draws_and_says_its_numbers(found: dict[str, object]) -> None:
    (figure,) = part_of_frontiers({"gamed": found}).figures
    assert figure.name == "frontier-1"
    assert "best of 4: proxy" in figure.alt
    text = svg(figure.draw, LIGHT)
    assert "gamed" in text
    assert "best of n" in text


def inputs(tmp_path: Path) -> Inputs:
    course = write_stage(tmp_path / "run" / "grpo", "grpo", {"seed": 0})
    return Inputs("sft", (Model("sft", {}), Model("grpo", {}, (course,))), ())


def test_it_is_found_beside_the_training_that_it_follows(tmp_path: Path) -> None:
    for stage, policies in (("frontier", "runs/elsewhere/grpo"), ("of_ppo", "runs/elsewhere/ppo")):
        written = write_stage(tmp_path / "run" / stage, "frontier", {"policies": policies})
        (written.path / "artifact").mkdir()
        content = GAMED if stage == "frontier" else HEALTHY
        (written.path / "artifact" / "frontier.json").write_text(json.dumps(content))
    found = inputs(tmp_path)
    assert read_frontiers(found) == {"grpo": GAMED}
    assert frontier_part(found).findings[0].tone == "warning"
    assert [stage.path.name for stage in every_stage(found)] == ["grpo", "frontier"]  # its cost is shown too


def test_without_one_it_says_how_to_get_it(tmp_path: Path) -> None:
    part = frontier_part(inputs(tmp_path))
    assert "`keep_policy_steps = 10`" in part.absent
    assert part.findings == part.figures == part.tables == ()

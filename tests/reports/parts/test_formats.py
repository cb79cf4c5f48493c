"""Form and answers: a gain of form is told from one of answers, and equal models claim nothing."""

import numpy as np
import pytest

from posttrain.reports.inputs import Evaluation
from posttrain.reports.parts.formats import format_counts, formats_part
from posttrain.reports.style import png
from tests.reports.parts.made_up import evaluation, inputs, model, sample, strict_json, texts

PROBLEMS = 200


def answers(name: str, *, kept: float, able: float, seed: int = 0, **columns: str) -> Evaluation:
    """Return an evaluation of a model that can solve `able` of the problems, and keeps the form in `kept` of them."""
    problems = np.random.default_rng(1).permutation(PROBLEMS)  # the able solve the same problems
    keeps = np.random.default_rng(seed).random(PROBLEMS) < kept
    solves = problems < able * PROBLEMS
    return evaluation(
        name,
        [
            sample(
                f"p{i:03d}", right=bool(solves[i] and keeps[i]), kept=bool(keeps[i]), lenient=bool(solves[i]), **columns
            )
            for i in range(PROBLEMS)
        ],
    )


def test_a_model_that_learned_the_form_alone_is_told_from_one_that_learned_to_answer() -> None:
    part = formats_part(
        inputs(
            model("base", answers("base", kept=0.5, able=0.4)),
            model("form", answers("form", kept=0.95, able=0.4, seed=2)),
            model("able", answers("able", kept=0.5, able=0.7, seed=3)),
        )
    )
    form, able = texts(part)
    assert form.startswith("nano: form keeps the form more often than base: +")
    assert able.startswith("nano: able is right in any form more often than base: +30.0 points")
    assert [finding.tone for finding in part.findings] == ["note", "better"]
    told = {claim["text"] for claim in strict_json(part)["claims"] if claim["holds"]}
    assert told == {form, able}


def test_models_that_answer_alike_claim_nothing() -> None:
    alarms = 0
    for seed in range(0, 60, 3):
        models = [model(str(i), answers(str(i), kept=0.8, able=0.4, seed=seed + i)) for i in range(3)]
        alarms += bool(formats_part(inputs(*models)).findings)
    assert alarms <= 2


def test_the_four_kinds_of_answers_are_counted() -> None:
    rows = [
        sample("a", right=True),
        sample("b", kept=True, lenient=True),
        sample("c", kept=True),
        sample("d", kept=False, lenient=True),
        sample("e", kept=False),
        sample("f", kept=False),
    ]
    found = format_counts(evaluation("x", rows))
    assert (found.kept_right, found.kept_wrong, found.broken_right, found.broken_wrong) == (2, 1, 1, 2)
    part = formats_part(inputs(model("x", evaluation("x", rows))))
    assert strict_json(part)["tasks"]["nano"]["x"]["strict"]["mean"] == pytest.approx(1 / 6)
    assert "kept and right 2" in part.figures[0].alt
    assert "right 16.7%, wrong 33.3%, format 50.0%" in part.figures[1].alt
    assert all(png(figure.draw) for figure in part.figures)


def test_subsets_stand_side_by_side() -> None:
    rows = [sample(f"p{i}", right=i < 3, level=str(1 + i % 2)) for i in range(8)]
    table = formats_part(inputs(model("x", evaluation("x", rows)))).tables[1]
    assert table.title == "Right on nano by level, strict"
    assert [[cell.text for cell in row] for row in table.rows] == [["1", "50.0%"], ["2", "25.0%"]]
    assert table.rows[0][1].detail == "lenient 50.0%, n = 4"


def test_tasks_without_a_right_answer_have_no_form() -> None:
    rows = [sample(f"p{i}") | {"strict": None, "category": "scored", "score": 0.3 * i} for i in range(3)]
    part = formats_part(inputs(model("x", evaluation("x", rows))))
    assert "posttrain eval --task" in part.absent

"""Length and diversity: one that only got longer and one that lost its variety are named, healthy ones are not."""

import numpy as np
import pytest

from posttrain.reports.inputs import Evaluation
from posttrain.reports.parts.lengths import lengths_part, proxy_column, read
from posttrain.reports.style import png
from tests.reports.parts.made_up import WORDS, evaluation, inputs, model, sample, strict_json, texts


def answered(
    name: str,
    *,
    able: float = 0.5,
    tokens: int = 30,
    samples: int = 1,
    love_of_length: float | None = None,
    variety: int = len(WORDS),
    problems: int = 60,
    seed: int = 0,
    fate: int = 0,
) -> Evaluation:
    """Return an evaluation of a model that solves each problem with a chance around `able`, in about `tokens` tokens.

    `love_of_length` is what a reward pays for 100 tokens; texts are of `variety` different words; `seed` draws lengths
    and texts, `fate` what is right.
    """
    draw = np.random.default_rng(seed)
    difficulty = np.random.default_rng(7).normal(0, 0.2, problems)  # the same for every model
    right = np.random.default_rng(fate).random((problems, samples)) < np.clip(able + difficulty, 0, 1)[:, None]
    rows = []
    for i in range(problems):
        for j in range(samples):
            length = int(max(1, draw.normal(tokens, 5)))
            text = " ".join(WORDS[k] for k in draw.integers(0, variety, length))
            row = sample(f"p{i:03d}", j, right=bool(right[i, j]), tokens=length, completion=text)
            if love_of_length is not None:
                row["reward"] = float(right[i, j] + love_of_length * length / 100 + draw.normal(0, 0.1))
            rows.append(row)
    return evaluation(name, rows)


def test_a_model_that_only_got_longer_is_named() -> None:
    before = answered("base", samples=8)
    part = lengths_part(inputs(model("base", before), model("long", answered("long", tokens=60, samples=8, seed=1))))
    (finding,) = [finding for finding in part.findings if "longer, not better" in finding.text]
    assert finding.tone == "warning"
    assert finding.text.startswith("nano: long beside base: longer, not better: ")
    assert finding.text in {claim["text"] for claim in strict_json(part)["claims"] if claim["holds"]}


@pytest.mark.parametrize(("able", "tokens"), [(0.8, 60), (0.5, 30), (0.3, 30)])
def test_a_model_that_got_better_too_or_not_longer_is_not(able: float, tokens: int) -> None:
    after = answered("after", able=able, tokens=tokens, samples=8, seed=1)
    part = lengths_part(inputs(model("base", answered("base", samples=8)), model("after", after)))
    assert not [text for text in texts(part) if "longer, not better" in text]


def test_models_that_are_alike_raise_hardly_any_claim() -> None:
    alarms = 0
    for seed in range(8):
        models = [
            answered(str(i), samples=2, love_of_length=0.0, problems=30, seed=10 * seed + i, fate=10 * seed + i)
            for i in range(3)
        ]
        alarms += bool(lengths_part(inputs(*(model(each.name, each) for each in models))).findings)
    assert alarms <= 1


def test_a_reward_that_pays_for_length_is_told_with_its_slope_at_equal_grades() -> None:
    part = lengths_part(inputs(model("x", answered("x", samples=4, love_of_length=2.0, problems=20))))
    (text,) = texts(part)
    assert text.startswith(
        "nano: of two answers of x to one prompt, graded alike, the longer one has the higher reward: +"
    )
    slopes = strict_json(part)["tasks"]["nano"]["models"]["x"]["slopes"]
    assert slopes["within"]["low"] < 2.0 < slopes["within"]["high"]
    assert slopes["least_squares"]["high"] > 2.0
    assert all(png(figure.draw) for figure in part.figures)


def test_samples_that_became_alike_are_named_where_both_were_sampled_alike() -> None:
    models = model("base", answered("base", samples=4)), model("flat", answered("flat", samples=4, variety=2))
    part = lengths_part(inputs(*models))
    (text,) = [text for text in texts(part) if "less diverse" in text]
    found = strict_json(part)["tasks"]["nano"]["models"]
    shown = [f"{found[name]['self_similarity']['mean']:.2f}" for name in ("base", "flat")]
    assert f"{shown[0]} to {shown[1]}" in text
    other = evaluation("flat", models[1].evaluations["nano"].samples, sampling={"temperature": 0.1})
    unlike = lengths_part(inputs(models[0], model("flat", other)))
    assert not [text for text in texts(unlike) if "less diverse" in text]


@pytest.mark.parametrize(("able", "tone"), [(0.5, "warning"), (0.9, "note")])
def test_a_loss_of_variety_is_a_warning_only_where_nothing_was_gained(able: float, tone: str) -> None:
    before, after = answered("base", samples=4), answered("flat", able=able, samples=4, variety=2)
    part = lengths_part(inputs(model("base", before), model("flat", after)))
    assert [finding.tone for finding in part.findings if "less diverse" in finding.text] == [tone]


def test_the_reward_is_what_every_model_has_or_else_the_score() -> None:
    paid, plain = answered("paid", love_of_length=0.0), answered("plain")
    assert proxy_column([paid]) == "reward"
    assert proxy_column([paid, plain]) == "score"
    judged = evaluation("judged", [{**row, "rewards/judge": 1.0, "reward": None} for row in paid.samples])
    assert proxy_column([judged]) == "rewards/judge"


def test_completions_that_were_cut_off_are_counted_and_the_limit_drawn() -> None:
    rows = [sample(f"p{i:02d}", tokens=10 + i, stop_reason="length" if i < 3 else "eos") for i in range(12)]
    part = lengths_part(inputs(model("x", evaluation("x", rows, sampling={"max_completion_length": 21}))))
    assert strict_json(part)["tasks"]["nano"]["models"]["x"]["cut_off"]["mean"] == 0.25
    assert part.tables[1].rows[0][-1].text == "25.0%"


def test_diversity_is_of_one_model_where_samples_of_several_seeds_lie_together() -> None:
    rows = [sample("p", j, completion=f"the same {seed}") | {"seed": seed} for seed in (0, 1) for j in (0, 1)]
    assert read(evaluation("x", rows, num_samples=2), "score").diversity["p"].duplicates == 0.5


def test_scores_without_grades_have_slopes_and_no_densities() -> None:
    rows = [row | {"strict": None, "lenient": None} for row in answered("x", samples=2).samples]
    part = lengths_part(inputs(model("x", evaluation("x", rows))))
    assert [figure.name for figure in part.figures] == ["length-reward-1"]


def test_answers_by_likelihood_have_no_length() -> None:
    rows = [sample(f"p{i}", tokens=1 + i) for i in range(3)]
    assert "posttrain eval" in lengths_part(inputs(model("x", evaluation("x", rows, kind="choices")))).absent
    assert not lengths_part(inputs(model("x", evaluation("x", rows)))).absent

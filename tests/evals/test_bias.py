"""Slopes within prompts against plain regression, their false alarms and coverage by simulation, and what is named."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from posttrain.evals.bias import MIN_PROMPTS, STYLE, Slope, bias_report, number_of_each, within_slopes
from posttrain.nano import preferences


def grouped(prompts: int, answers: int) -> np.ndarray:
    return np.repeat(np.arange(prompts), answers)


def within_slope(
    outcome: np.ndarray, feature: np.ndarray, prompts: np.ndarray, controls: Sequence[np.ndarray] = ()
) -> Slope | None:
    return within_slopes(outcome, [feature, *controls], prompts)[0]


def with_dummies(outcome: np.ndarray, columns: Sequence[np.ndarray], prompts: np.ndarray) -> np.ndarray:
    """Return the coefficients of plain least squares with one column for each prompt."""
    dummies = (prompts[:, None] == np.unique(prompts)).astype(float)
    return np.linalg.lstsq(np.column_stack([*columns, dummies]), outcome, rcond=None)[0]


# --- the slope -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controls", [0, 2])
def test_a_slope_is_that_of_a_regression_with_a_constant_for_each_prompt(controls: int) -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 15, 60)
    x, y, *others = rng.normal(size=(2 + controls, 60))
    found = within_slope(y, x, prompts, others)
    assert found is not None
    assert found.slope == pytest.approx(with_dummies(y, [x, *others], prompts)[0])
    # its error: leave each prompt out in turn
    without = [with_dummies(y[k], [x[k], *(o[k] for o in others)], prompts[k])[0] for k in each_left_out(prompts)]
    varying = found.prompts
    error = np.sqrt((varying - 1) / varying * ((np.array(without) - found.slope) ** 2).sum())
    freedom = varying - 1 - controls
    half = stats.t.ppf(0.975, freedom) * error
    assert found.interval == pytest.approx((found.slope - half, found.slope + half))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.slope / error), freedom))


def each_left_out(prompts: np.ndarray) -> list[np.ndarray]:
    return [prompts != prompt for prompt in np.unique(prompts)]


def test_without_controls_the_standardised_slope_is_the_correlation_within_prompts() -> None:
    rng = np.random.default_rng(1)
    prompts = grouped(20, 2)
    x, noise = rng.normal(size=(2, 40))
    found = within_slope(x + noise + 10 * prompts, x - 5 * prompts, prompts)
    assert found is not None
    pairs = np.column_stack([np.diff(v.reshape(20, 2)).ravel() for v in (x, x + noise)])
    expected = (pairs[:, 0] * pairs[:, 1]).sum() / np.sqrt((pairs**2).sum(axis=0).prod())
    assert found.standardised == pytest.approx(expected)


def test_differences_between_prompts_say_nothing() -> None:
    """Long answers to easy prompts: a slope over all completions would see a strong preference for length."""
    rng = np.random.default_rng(2)
    prompts = grouped(200, 2)
    ease = rng.normal(size=200)[prompts]
    lengths = 100 + 50 * ease + rng.normal(size=400)
    scores = 3 * ease + rng.normal(size=400)
    assert stats.linregress(lengths, scores).pvalue < 1e-20
    found = within_slope(scores, lengths, prompts)
    assert found is not None
    assert found.p > 0.05


def test_what_cannot_be_asked_has_no_slope() -> None:
    rng = np.random.default_rng(3)
    prompts = grouped(40, 2)
    y = rng.normal(size=80)
    few = np.where(prompts < MIN_PROMPTS - 1, rng.normal(size=80), 5.0)
    assert within_slope(y, few, prompts) is None
    x = rng.normal(size=80)
    assert within_slope(np.repeat(rng.normal(size=40), 2), x, prompts) is None
    assert within_slope(y, x, prompts, [2 * x + prompts]) is None
    assert within_slope(y, x, np.arange(80)) is None
    exact = within_slope(2 * x + prompts, x, prompts)
    assert exact is not None
    assert (exact.slope, exact.p) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize(
    ("count", "answers", "feature"), [(40, 2, "normal"), (200, 2, "rare"), (30, 8, "skewed"), (100, 2, "skewed")]
)
def test_false_alarms_are_near_five_percent(count: int, answers: int, feature: str, judged: bool) -> None:
    """Also where prompts differ in the noise of their scores, where few answers have the feature, and beside labels."""
    rng = np.random.default_rng(4)
    prompts = grouped(count, answers)
    labels = (np.arange(count * answers) % 2 == 0).astype(float)
    alarms, covered = [], []
    for _ in range(1200):
        size = count * answers
        x = {
            "normal": rng.normal(size=size),
            "rare": (rng.random(size) < 0.15).astype(float),
            "skewed": np.exp(rng.normal(size=size)),
        }[feature]
        noise = np.exp(0.7 * rng.normal(size=count))[prompts] * rng.normal(size=size)
        y = noise + 3 * rng.normal(size=count)[prompts] + 1.5 * judged * labels
        controls = [labels] if judged else []
        null, real = within_slope(y, x, prompts, controls), within_slope(y + 0.7 * x, x, prompts, controls)
        assert null is not None
        assert real is not None
        alarms.append(null.p < 0.05)
        covered.append(real.interval.low <= 0.7 <= real.interval.high)
    assert 0.025 < np.mean(alarms) < 0.065
    assert 0.935 < np.mean(covered) < 0.975


def test_answers_that_are_alike_are_not_counted_as_many() -> None:
    """The control of the test above: copies of answers would make a test that takes them for new ones sound alarms."""
    rng = np.random.default_rng(5)
    prompts = grouped(40, 8)
    ours, naive = [], []
    for _ in range(600):
        x, y = (np.repeat(rng.normal(size=(40, 2)), 4, axis=1).ravel() for _ in range(2))
        found = within_slope(y, x, prompts)
        assert found is not None
        ours.append(found.p < 0.05)
        centred = [v - np.repeat(v.reshape(40, 8).mean(axis=1), 8) for v in (x, y)]
        naive.append(stats.linregress(*centred).pvalue < 0.05)
    assert np.mean(ours) < 0.07
    assert np.mean(naive) > 0.25


# --- the report ------------------------------------------------------------------------------------------------


def pairs_of(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lengths, prompts and labels of pairs whose chosen answer is longer by the gaps."""
    lengths = np.column_stack([100 + gaps, np.full(len(gaps), 100)]).ravel()
    return lengths, grouped(len(gaps), 2), np.tile([1.0, 0.0], len(gaps))


PLAIN = ["It is so."] * 1000


def test_a_model_that_likes_length_is_named() -> None:
    rng = np.random.default_rng(6)
    lengths, prompts, labels = pairs_of(rng.normal(scale=20, size=200))
    report = bias_report(0.05 * lengths + rng.normal(size=400), lengths, PLAIN[:400], prompts, labels)
    (finding,) = report["findings"]
    assert finding == report["length"]
    assert finding.startswith("prefers longer answers: +4.")
    assert "the labels themselves" in finding
    assert "told apart" not in finding
    slopes = report["length_per_100_tokens"]
    assert slopes["scores"]["slope"] == pytest.approx(5.0, abs=0.6)
    assert slopes["scores_beside_judged"]["slope"] == pytest.approx(5.0, abs=0.6)
    assert slopes["judged"]["p"] > 0.05
    shorter = bias_report(-0.05 * lengths + rng.normal(size=400), lengths, PLAIN[:400], prompts)
    assert shorter["findings"][0].startswith("prefers shorter answers: -")
    assert shorter["length_per_100_tokens"]["judged"] is None


def test_labels_that_like_length_are_told_from_a_model_that_does() -> None:
    """Chosen answers are a little longer; a model that knows the better ones, and no length, is not to blame."""
    rng = np.random.default_rng(7)
    lengths, prompts, labels = pairs_of(rng.normal(8, 20, size=400))
    report = bias_report(3 * labels + rng.normal(size=800), lengths, PLAIN[:800], prompts, labels)
    assert report["findings"] == []
    assert report["length"].startswith("longer answers score higher only as far as they are judged better")
    slopes = report["length_per_100_tokens"]
    assert slopes["scores"]["p"] < 0.01
    assert slopes["judged"]["p"] < 0.01
    assert slopes["scores_beside_judged"]["p"] > 0.05


def test_length_that_decides_every_label_cannot_be_told_from_quality() -> None:
    rng = np.random.default_rng(8)
    lengths, prompts, labels = pairs_of(rng.normal(60, 10, size=100))
    report = bias_report(3 * labels + rng.normal(size=200), lengths, PLAIN[:200], prompts, labels)
    (finding,) = report["findings"]
    assert finding.startswith("prefers longer answers")
    assert finding.endswith("length and judgement are too close here to be told apart")
    # a model that goes the other way is not said to like length for what a regression makes of so little
    report = bias_report(-3 * labels + 0.05 * lengths + rng.normal(size=200), lengths, PLAIN[:200], prompts, labels)
    assert report["length_per_100_tokens"]["scores_beside_judged"]["p"] < 0.01
    assert report["findings"] == []
    assert report["length"].startswith("no preference for longer or shorter answers: ")


def test_a_slight_preference_is_no_finding() -> None:
    rng = np.random.default_rng(12)
    lengths, prompts, _ = pairs_of(rng.normal(scale=20, size=5000))
    report = bias_report(0.005 * lengths + rng.normal(size=10000), lengths, PLAIN * 10, prompts)
    assert report["findings"] == []
    assert report["length"].startswith("at most a slight preference for longer answers: +0.")


def test_a_preference_that_the_labels_hide_is_found_beside_them() -> None:
    """Right answers are shorter and score higher; among answers that are alike in that, the longer ones win."""
    rng = np.random.default_rng(9)
    lengths, prompts, labels = pairs_of(rng.normal(-8, 20, size=400))
    report = bias_report(1.7 * labels + 0.03 * lengths + rng.normal(size=800), lengths, PLAIN[:800], prompts, labels)
    assert report["length_per_100_tokens"]["scores"]["standardised"] < 0.1
    assert report["findings"][0].startswith("prefers longer answers")


def test_a_style_is_told_from_length() -> None:
    rng = np.random.default_rng(10)
    prompts = grouped(300, 2)
    bold, digits, sentences = rng.poisson(1, 600), rng.poisson(2, 600), rng.poisson(2, 600)
    counts = zip(bold, digits, sentences, strict=True)
    texts = [f"So {'**it** ' * b}is {'7 ' * d}.{' It is.' * s}" for b, d, s in counts]
    lengths = 20 + 4 * bold + 2 * digits + 3 * sentences
    report = bias_report(0.5 * bold + rng.normal(size=600), lengths, texts, prompts)
    style = report["style_at_equal_length"]
    assert style["bold"]["found"]
    assert not style["digits"]["found"]
    assert any(finding.startswith("prefers more bold at equal length: +0.") for finding in report["findings"])
    assert "headings" not in style  # no text has one
    assert style["bold"]["judged"] is None


def test_under_no_bias_few_reports_have_a_finding() -> None:
    rng = np.random.default_rng(11)
    words = ["First it is so. ", "Maybe 7. ", "Why? ", "**Yes**! ", "# Title\n", "- item\n", "It is 12 and then 5. "]
    lengths_named, styles_named = [], []
    for _ in range(200):
        prompts = grouped(120, 2)
        texts = ["".join(rng.choice(words, rng.integers(1, 6))) for _ in prompts]
        lengths = np.array([len(text.split()) for text in texts])
        labels = np.tile([1.0, 0.0], 120)
        report = bias_report(labels + rng.normal(size=240), lengths, texts, prompts, labels)
        lengths_named.append(report["length"] in report["findings"])
        styles_named.append(any("at equal length" in finding for finding in report["findings"]))
        assert len(report["style_at_equal_length"]) >= 7
    assert np.mean(lengths_named) < 0.07
    assert 0.01 < np.mean(styles_named) < 0.08


@pytest.mark.parametrize("seed", range(5))
def test_judges_of_the_nano_pairs(seed: int) -> None:
    """Those who know the right answer like no length; those who like length are found out."""
    reports = {}
    for preference in ("right", "longer"):
        rows = preferences.rows(preference, "train", 1000, seed=seed)
        sides = (("solution", "answer"), ("rejected_solution", "rejected_answer"))
        texts = [f"{row[solution]} {row[answer]}" for row in rows for solution, answer in sides]
        labels, lengths = np.tile([1.0, 0.0], 1000), np.array([len(text) for text in texts])
        reports[preference] = bias_report(labels, lengths, texts, grouped(1000, 2))
    assert reports["right"]["findings"] == []
    assert reports["longer"]["length"] in reports["longer"]["findings"]
    assert reports["longer"]["length"].startswith("prefers longer answers: +")


def test_few_prompts_say_so() -> None:
    report = bias_report(np.arange(4.0), np.arange(4), PLAIN[:4], np.array([0, 0, 1, 1]))
    assert (report["prompts"], report["findings"], report["style_at_equal_length"]) == (2, [], {})
    assert report["length"] == "length: fewer than 10 prompts have answers that differ in length and in score"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("list items", "- a\n* b\n1. c\n 2) d\nno - e", 4),
        ("bold", "**a** and **b c**, 2 ** 3", 2),
        ("headings", "# A\n### B\n#c\nx # d", 2),
        ("question marks", "Why? How??", 3),
        ("exclamation marks", "No! Yes!", 2),
        ("digits", "12 and 3.", 3),
        ("step words", "First this, then that. After that, step 3. Nextdoor.", 4),
        ("hedges", "Maybe it might be. I think so; unlikely.", 3),
        ("words per sentence", "One two three. Four five! 3.5 is six", 4),
    ],
)
def test_style_features_by_hand(name: str, text: str, expected: float) -> None:
    assert STYLE[name](text) == pytest.approx(expected)
    assert STYLE[name]("") == 0


def test_equal_prompts_have_equal_numbers() -> None:
    assert number_of_each(["b", "a", "b"]).tolist() == [0, 1, 0]

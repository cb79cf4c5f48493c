"""Made-up data for figures and pages: an ordinary report, and the same figures with data that is hard to draw."""

import math
import random

from posttrain.reports.figures.course import CoursePanel, Line, course
from posttrain.reports.figures.curves import Frontier, PassCurve, frontier, pass_curves
from posttrain.reports.figures.judging import (
    Bin,
    GroupAccuracy,
    WinRate,
    accuracy_by_group,
    reliability,
    win_rates,
)
from posttrain.reports.figures.labels import duration
from posttrain.reports.figures.lengths import Cloud, Lengths, length_densities, length_scatter
from posttrain.reports.figures.scores import Score, score_bars
from posttrain.reports.figures.shares import FormatCounts, cost_bars, format_matrix, outcome_bars
from posttrain.reports.figures.tasks import TaskScore, task_bars
from posttrain.reports.style import Draw

NAN = math.nan
MODELS = ("base", "sft", "dpo", "grpo")
LONG = tuple(f"smollm2-135m-instruct-grpo-with-{word}-lr1e-5-beta0.04-seed-{i}" for i, word in enumerate("abcdefgh"))


def _scores(models: tuple[str, ...], rng: random.Random) -> list[Score]:
    found = []
    for i, model in enumerate(models):
        mean = 0.18 + 0.07 * i
        seeds = tuple(mean + rng.gauss(0, 0.015) for _ in range(3)) if i else ()
        found.append(Score(model, mean, mean - 0.04, mean + 0.05, seeds))
    return found


def _tasks(models: tuple[str, ...], *, proxy: bool) -> list[TaskScore]:
    tasks = (
        ("Trained on", "gsm8k"),
        ("Same kind", "svamp"),
        ("Far", "arc-easy"),
        ("Far", "hellaswag"),
        ("Safety", "refusals"),
    )
    found = []
    for t, (group, task) in enumerate(tasks):
        for i, model in enumerate(models):
            gold = 0.25 + 0.08 * ((t * 3 + i) % 5) + 0.03 * i
            hacking = proxy and task == "svamp" and i == len(models) - 1
            shown = (0.9 if hacking else gold + 0.05) if proxy and t < 2 else NAN
            found.append(TaskScore(group, task, model, gold, gold - 0.05, gold + 0.05, shown, hacking))
    return found


def _course(steps: int, rng: random.Random) -> tuple[list[int], list[CoursePanel]]:
    xs = list(range(1, steps + 1))
    noise = [rng.gauss(0, 0.02) for _ in xs]
    rise = [x / (x + steps / 4) for x in xs]
    gold = [0.2 + 0.3 * r - 0.35 * max(0.0, x / steps - 0.5) + n for x, r, n in zip(xs, rise, noise, strict=True)]
    gold = [value if steps < 4 or i % 7 != 3 else NAN for i, value in enumerate(gold)]
    panels = [
        CoursePanel(
            "Reward, by part",
            (
                Line("correct", tuple(0.2 + 0.3 * r + n for r, n in zip(rise, noise, strict=True))),
                Line("format", tuple(0.4 * r for r in rise)),
                Line("length penalty", tuple(-0.15 * x / steps for x in xs)),
            ),
            stacked=True,
        ),
        CoursePanel("Gold score", (Line("gold", tuple(gold)),)),
        CoursePanel(
            "Length, tokens",
            (
                Line("mean", tuple(80 + 100 * x / steps for x in xs)),
                Line("right only", tuple(78 + 60 * x / steps for x in xs), 2),
            ),
        ),
        CoursePanel("KL from the reference", (Line("kl", tuple(0.002 * x**1.2 for x in xs)),)),
    ]
    return xs, panels


def _frontier(model: str, points: int, height: float) -> Frontier:
    kl = [0.02 * i * i for i in range(points)]
    roots = [math.sqrt(x) for x in kl]
    gold = [0.2 + height * d * (1 - 0.35 * d) for d in roots]
    proxy = [0.2 + 1.15 * height * d for d in roots]
    band = ([g - 0.03 for g in gold], [g + 0.03 for g in gold])
    return Frontier(model, kl, proxy, gold, gold_band=band)


def _pass(model: str, i: int, ks: list[int], *, voted: bool) -> PassCurve:
    start = 0.15 + 0.06 * i
    solved = [1 - (1 - start) ** (k ** (0.8 - 0.06 * i)) for k in ks]
    majority = [start + 0.03 * math.log2(k) for k in ks] if voted else []
    return PassCurve(model, ks, solved, ([s - 0.03 for s in solved], [s + 0.03 for s in solved]), majority)


def _cloud(model: str, i: int, samples: int, rng: random.Random) -> Cloud:
    lengths = [rng.gauss(120 + 10 * i, 35) for _ in range(samples)]
    rewards = [0.004 * (x - 120) * (i % 3) + rng.gauss(0.5, 0.3) for x in lengths]
    return Cloud(model, lengths, rewards, 0.4 * (i % 3), f"+{0.4 * (i % 3):.2f} per 100 tokens")


def _lengths(model: str, samples: int, rng: random.Random) -> Lengths:
    right = [rng.gauss(90, 20) for _ in range(samples)]
    return Lengths(model, right, [min(200.0, rng.gauss(150, 40)) for _ in range(2 * samples)])


def _outcomes(models: tuple[str, ...]) -> list[tuple[str, dict[str, float]]]:
    return [
        (
            m,
            {
                "right": 0.2 + 0.04 * i,
                "wrong": 0.4,
                "format": 0.3 - 0.04 * i,
                "cut off": 0.06,
                "ungraded": 0.03 - 0.01 * (i % 4),
            },
        )
        for i, m in enumerate(models)
    ]


def figures(
    models: tuple[str, ...] = MODELS, *, points: int = 16, samples: int = 150, steps: int = 60
) -> dict[str, Draw]:
    """Return a drawing of every kind for these models."""
    rng = random.Random(0)
    last = models[-1]
    ks = [2**i for i in range(max(1, points.bit_length()))]
    xs, panels = _course(steps, rng)
    half = [i / 10 for i in range(10)]
    return {
        "scores": score_bars(
            _scores(models, rng),
            title="Strict accuracy on gsm8k",
            subtitle="95% intervals, a dot for each seed",
            order=models,
            reference=("chance", 0.1),
        ),
        "tasks": task_bars(_tasks(models, proxy=True), title="Gold score and proxy reward by task", order=models),
        "course": course(
            xs,
            panels,
            title=f"Training of {last}",
            split=(max(1, steps // 2), f"step {max(1, steps // 2)}: proxy up, gold down"),
        ),
        "frontier": frontier(
            [_frontier(m, points, 0.25 + 0.03 * i) for i, m in enumerate(models[1:] or models)],
            title="Over-optimisation",
            subtitle="bands: 95% intervals",
            order=models,
            best_of_n=_frontier("best of n", 9, 0.3),
        ),
        "frontier-apart": frontier(
            [_frontier(m, points, 0.25 + 0.03 * i) for i, m in enumerate(models)],
            title="Over-optimisation",
            order=models,
            apart=True,
        ),
        "pass": pass_curves(
            [_pass(m, i, ks, voted=len(models) < 3) for i, m in enumerate(models)],
            title="Solved within k samples",
            order=models,
            crossover=(ks[-1] ** 0.6, "crossover at k = 8"),
        ),
        "length-scatter": length_scatter(
            [_cloud(m, i, samples, rng) for i, m in enumerate(models)], title="Reward against length", order=models
        ),
        "length-densities": length_densities(
            [_lengths(m, samples, rng) for m in models],
            title="Length of right and wrong completions",
            limit=("cut off at 200", 200),
        ),
        "format": format_matrix(
            [FormatCounts(m, 40 + i, 90, 12, 58 - i) for i, m in enumerate(models)], title="Format and correctness"
        ),
        "reliability": reliability(
            [
                Bin(c + 0.05, min(1.0, c * 0.8 + 0.15), 40 + int(100 * c), c * 0.8 + 0.09, min(1.0, c * 0.8 + 0.21))
                for c in half
            ][:points],
            title="Calibration of the reward model",
            error=0.043,
        ),
        "accuracy-by-group": accuracy_by_group(
            [
                GroupAccuracy(f"{m}: chosen is longer", 0.55 + 0.04 * i, 0.5 + 0.04 * i, 0.6 + 0.04 * i, 200)
                for i, m in enumerate(models)
            ],
            title="Accuracy by group",
        ),
        "win-rates": win_rates(
            [
                WinRate(
                    m,
                    0.55 + 0.03 * i,
                    0.5 + 0.03 * i,
                    0.6 + 0.03 * i,
                    0.5 + 0.02 * i,
                    0.44 + 0.02 * i,
                    0.56 + 0.02 * i,
                    0.11,
                )
                for i, m in enumerate(models[1:] or models)
            ],
            title="Win rates against base",
            baseline=models[0],
            order=models,
        ),
        "outcomes": outcome_bars(_outcomes(models), title="How the samples ended"),
        "cost": cost_bars(
            [(m, 400.0 + 1300 * i) for i, m in enumerate(models)], title="Wall time by stage", write=duration
        ),
    }


HARD = {
    "ordinary": figures(),
    "eight long names": figures(LONG, samples=1000, steps=200),
    "one point": figures(("base",), points=1, samples=1, steps=1),
    "two points": figures(("base", "sft"), points=2, samples=2, steps=2),
}

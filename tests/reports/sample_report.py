"""A made-up report with a part of every kind, and texts that try to break out of its page."""

from posttrain.reports.part import Example, Figure, Finding, Part, Report
from posttrain.reports.tables import Cell, Table
from tests.reports.samples import MODELS, figures

HOSTILE = "</pre><script>alert(1)</script> ``` # owned\n![x](http://evil.example/x.png) \x1b[31m \u202egnp.exe"
LONG = "\n".join(f"Step {i}: {i} + {i} = {2 * i}, so we add {2 * i} to the total." for i in range(1, 41)) + "\n#### 820"
PROBLEM = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)


def sample_report(models: tuple[str, ...] = MODELS) -> Report:
    """Return the report of these models, the first of which is the baseline."""
    drawn = figures(models)

    def figure(name: str, *, caption: str = "") -> Figure:
        return Figure(name, f"The figure {name} of {', '.join(models)}", drawn[name], caption)

    verdict = Part(
        "verdict",
        "Verdict",
        findings=(
            Finding(
                "better", "sft is better than base: +7.0 points (95% CI +2.1 to +11.9, p = 0.004), 31 fixed, 10 lost."
            ),
            Finding(
                "worse", "dpo is worse than base: -6.2 points (95% CI -10.8 to -1.6, p = 0.008), 9 fixed, 28 lost."
            ),
            Finding(
                "cannot tell",
                "grpo cannot be told from sft: +1.5 points (95% CI -3.0 to +6.0, p = 0.51), 12 fixed, 9 lost; "
                "200 problems show differences of 9.9 points or more.",
            ),
            Finding("warning", "grpo: suspected hacking on svamp, the proxy rose by 0.31 and the gold score fell."),
            Finding(
                "note", "One seed: intervals hold for these runs, not for the method. `posttrain sweep demo --seeds 3`"
            ),
        ),
        tables=(accuracy_table(models),),
        note="Nothing is bold unless it passes its adjusted test.",
        data={"tests": 3},
    )
    return Report(
        "base, sft, dpo and grpo on gsm8k",
        "200 problems, 4 samples each, seed 17",
        (
            verdict,
            Part(
                "scores",
                "Scores",
                figures=(figure("scores", caption="Bars start at zero."), figure("tasks"), figure("outcomes")),
            ),
            Part(
                "training",
                "Proxy and gold during training",
                findings=(Finding("warning", "From step 30 on the proxy rises and the gold score falls."),),
                figures=(
                    figure("course"),
                    figure("frontier", caption="KL is no measure of optimisation across methods."),
                    figure("frontier-apart"),
                ),
                note="The reward in training is the proxy; the gold score is measured on held-out problems.",
            ),
            Part("lengths", "Length", figures=(figure("length-scatter"), figure("length-densities"))),
            Part("samples", "More samples", figures=(figure("pass"), figure("format"))),
            Part(
                "judge",
                "Judge",
                absent="No judge compared these models. Add one: `posttrain eval --judge http://localhost:8000/v1`",
            ),
            Part(
                "reward-model",
                "Reward model",
                figures=(figure("reliability"), figure("accuracy-by-group"), figure("win-rates")),
            ),
            Part(
                "examples",
                "Changed examples",
                findings=(Finding("note", "31 fixed, 10 lost, McNemar p = 0.001."),),
                examples=_examples(),
            ),
            Part("cost", "Cost", figures=(figure("cost"),), tables=(_wide_table(models),)),
            Part("provenance", "Provenance", examples=_provenance()),
        ),
    )


def accuracy_table(models: tuple[str, ...]) -> Table:
    """Accuracy with intervals, a verdict in each tone."""
    tones = ("dim", "bold green", "bold red", "yellow")
    rows = tuple(
        (
            Cell(model),
            Cell(f"{18 + 7 * i:.1f}%", f"{14 + 7 * i:.1f} to {23 + 7 * i:.1f}"),
            Cell(f"{7 * i:+.1f}" if i else "-", f"{7 * i - 4:+.1f} to {7 * i + 5:+.1f}" if i else "", tones[i % 4]),
            Cell(("baseline", "better", "worse", "cannot tell")[i % 4], style=tones[i % 4]),
        )
        for i, model in enumerate(models)
    )
    return Table(
        "Accuracy, strict", ("model", "accuracy", f"vs {models[0]}", "verdict"), rows, "Paired differences in points."
    )


def _wide_table(models: tuple[str, ...]) -> Table:
    headers = ("model", *(f"measure {i}" for i in range(1, 12)))
    rows = tuple((Cell(model), *(Cell(f"{i * 1234.5:,.1f}", "n = 200") for i in range(1, 12))) for model in models)
    return Table("Everything measured", headers, rows)


def _examples() -> tuple[Example, ...]:
    before = "She sold 48 in April and 24 in May.\n48 + 24 = 62\n#### 62"
    return (
        Example(
            "sft: fixed",
            (("prompt", PROBLEM), ("gold", "72"), ("base", before), ("sft", before.replace("62", "72"))),
            ("fixed", "largest gain"),
        ),
        Example(
            "grpo: lost",
            (("prompt", PROBLEM), ("gold", "72"), ("sft", "#### 72"), ("grpo", LONG)),
            ("lost", "longest", "reward 3.1"),
        ),
        Example("grpo: random", (("prompt", "2 + 2 ="), ("gold", "4"), ("completion", HOSTILE)), ("random",)),
    )


def _provenance() -> tuple[Example, ...]:
    command = "posttrain compare --models.base runs/base --models.sft runs/sft --models.grpo runs/grpo --seed 17"
    difference = "-learning_rate = 1e-5\n+learning_rate = 2e-5\n kl_coef = 0.04"
    return (Example("To make it again", (("command", command),)), Example("Settings", (("sft to grpo", difference),)))

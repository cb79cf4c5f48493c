"""How a comparison looks: its tables, on the terminal and as a Markdown page.

Floor 5: lays out what `contrasts.py` found, and computes nothing. Only what passes its adjusted test is bold.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from posttrain.reports.contrasts import Comparison, Contrast
from posttrain.reports.tables import Cell, Table, bar, fits, render_markdown, render_terminal

STYLES = {"better": "bold green", "worse": "bold red", "cannot tell": "yellow"}
OUTCOMES = {  # of a sample under strict grading: header, character of the bar
    "correct": ("right", "█"),
    "wrong_answer": ("wrong", "▒"),
    "format_failure": ("format", "░"),
    "truncated": ("cut off", "·"),
    "could_not_grade": ("ungraded", "?"),
}
BAR_WIDTH = 20
NONE = Cell("-", style="dim")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print tables and sentences, fitted to the console's width."""
    width = console.width - 1  # of the margin
    with_bar = fits(outcome_table(comparison, with_bar=True), width=width)
    console.print()
    for table in tables(comparison, with_bar=with_bar):
        console.print(Padding(render_terminal(table, width=width), (0, 0, 1, 1)))
    for verdict, sentence in comparison.findings():
        console.print(_bullet(sentence, STYLES[verdict].removeprefix("bold ")))
    for notice in comparison.notices:
        console.print(_bullet(notice, "yellow", "!"))
    console.print()


def _bullet(sentence: str, style: str, mark: str = "●") -> RichTable:
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_row("", Text(mark, style=style), Text(sentence, overflow="fold"))
    return grid


def markdown(comparison: Comparison) -> str:
    """Return the page: verdicts, tables, and problems whose outcome changed."""
    summary = comparison.models[0].summary
    lines = [*comparison.sentences(), *comparison.notices]
    parts = [f"# Comparison on {summary['task']}", "\n".join(f"- {line}" for line in lines)]
    parts += [render_markdown(table) for table in tables(comparison, with_bar=False)]
    parts += [_provenance(summary)]
    if comparison.examples:
        parts += ["## Problems whose outcome changed", *(_example(example) for example in comparison.examples)]
    return "\n\n".join(parts) + "\n"


def tables(comparison: Comparison, *, with_bar: bool) -> list[Table]:
    """Return the tables in order: accuracy, outcomes, and pass@k where there are several samples."""
    found = [accuracy_table(comparison), outcome_table(comparison, with_bar=with_bar)]
    if comparison.models[0].summary["num_samples"] > 1:
        found.append(pass_table(comparison))
    return found


def accuracy_table(comparison: Comparison) -> Table:
    """Strict accuracy with its interval, and the paired difference from the baseline."""
    summary = comparison.models[0].summary
    rows = []
    for model in comparison.models:
        strict = model.summary["strict"]
        accuracy = Cell(_percent(strict["accuracy"]), f"{_points(strict['low'])} to {_points(strict['high'])}")
        verdict = Cell("baseline", style="dim")
        if model.against_baseline:
            verdict = Cell(model.against_baseline.verdict, style=STYLES[model.against_baseline.verdict])
        rows.append(
            (
                Cell(model.name, style="bold" if model.name == comparison.baseline else ""),
                accuracy,
                _difference(model.against_baseline),
                verdict,
            )
        )
    return Table(
        f"Accuracy on {summary['task']}, strict, with 95% intervals",
        ("model", "accuracy", f"vs {comparison.baseline}", "verdict"),
        tuple(rows),
        f"{summary['problems']} problems x {summary['num_samples']}; paired differences in points; "
        f"intervals unadjusted; p and verdicts Holm-adjusted ({comparison.tests} test{'s' * (comparison.tests > 1)})",
    )


def outcome_table(comparison: Comparison, *, with_bar: bool) -> Table:
    """Shares of each outcome that occurs under strict grading, beside lenient accuracy and length."""
    occurring = {
        name: look
        for name, look in OUTCOMES.items()
        if any(model.summary["categories"][name] for model in comparison.models)
    }
    headers = ("model", *(["outcomes"] if with_bar else []), *(header for header, _ in occurring.values()))
    rows = []
    for model in comparison.models:
        shares = model.summary["categories"]
        picture = bar([(shares[name], character) for name, (_, character) in occurring.items()], BAR_WIDTH)
        rows.append(
            (
                Cell(model.name),
                *([Cell(picture, style="cyan")] if with_bar else []),
                *(_share(shares[name]) for name in occurring),
                Cell(_percent(model.summary["lenient"]["accuracy"])),
                Cell(f"{model.summary['mean_length']:.0f}"),
            )
        )
    legend = f"{'  '.join(f'{character} {header}' for header, character in occurring.values())}\n"
    return Table(
        "How the samples ended, under strict grading",
        (*headers, "lenient", "tokens"),
        tuple(rows),
        f"{legend if with_bar else ''}format: no answer in the required form; lenient: right in any form; "
        "tokens: mean length",
    )


def pass_table(comparison: Comparison) -> Table:
    """Unbiased pass@k."""
    ks = list(comparison.models[0].summary["pass_at_k"])
    rows = [
        (Cell(model.name), *(Cell(_percent(model.summary["pass_at_k"][k])) for k in ks)) for model in comparison.models
    ]
    return Table("Solved within k samples (unbiased)", ("model", *(f"pass@{k}" for k in ks)), tuple(rows))


def _difference(found: Contrast | None) -> Cell:
    if found is None:
        return NONE
    low, high = found.interval
    style = STYLES[found.verdict] if found.verdict != "cannot tell" else ""
    return Cell(f"{100 * found.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", style)


def _share(share: float) -> Cell:
    return Cell(_percent(share), style="" if share else "dim")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _provenance(summary: Mapping[str, Any]) -> str:
    sampling = ", ".join(f"{key} {value}" for key, value in summary["sampling"].items())
    return (
        f"Task {summary['task']} version {summary['task_version']}, grader version {summary['grader_version']}, "
        f"answers in the form {summary['strict_profile']}, data {summary['data_fingerprint']}. Sampling: {sampling}."
    )


def _example(example: Mapping[str, Any]) -> str:
    """Model text is shown inside a fence longer than any run of backticks in it, so it cannot become markup."""
    texts = {
        "problem": example["prompt"],
        "gold": example["gold"],
        "before": example["before"],
        "after": example["after"],
    }
    fence = "`" * (3 + max(text.count("`") for text in texts.values()))
    blocks = [f"{label}\n\n{fence}text\n{text.strip()}\n{fence}" for label, text in texts.items()]
    return "\n\n".join([f"### {example['model']}: {example['change']}", *blocks])

"""A comparison's tables, and how they look on the terminal.

Floor 5: lays out what `contrasts.py` found, and computes nothing. Only what passes its adjusted test is bold.
"""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from posttrain.reports.contrasts import Comparison, Contrast
from posttrain.reports.numbers import plain_interval, plain_score, signed
from posttrain.reports.tables import Cell, Table, bar, fits, render_terminal

STYLES = {"better": "bold green", "worse": "bold red", "cannot tell": "yellow"}
OUTCOMES = {  # of a sample under strict grading: header, character of the bar
    "correct": ("right", "█"),
    "wrong_answer": ("wrong", "▒"),
    "format_failure": ("format", "░"),
    "truncated": ("cut off", "·"),
    "could_not_grade": ("ungraded", "?"),
    "scored": ("scored", "▓"),
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


def tables(comparison: Comparison, *, with_bar: bool) -> list[Table]:
    """Return the tables in order: scores, outcomes, and pass@k where there are several samples of problems."""
    found = [score_table(comparison), outcome_table(comparison, with_bar=with_bar)]
    if len(comparison.models[0].summary.get("pass_at_k", ())) > 1:
        found.append(pass_table(comparison))
    return found


def score_table(comparison: Comparison) -> Table:
    """Mean scores with their intervals, and the paired differences from the baseline."""
    scale = comparison.scale
    rows = []
    for model in comparison.models:
        score = model.summary["score"]
        verdict = Cell("baseline", style="dim") if model.name == comparison.baseline else NONE
        if model.against_baseline:
            verdict = Cell(model.against_baseline.verdict, style=STYLES[model.against_baseline.verdict])
        rows.append(
            (
                Cell(model.name, style="bold" if model.name == comparison.baseline else ""),
                Cell(plain_score(score["mean"], scale), plain_interval(score["low"], score["high"], scale)),
                _difference(comparison, model.against_baseline),
                verdict,
            )
        )
    summary = comparison.models[0].summary
    share = scale == "share"
    tests = f"{comparison.tests} test{'s' * (comparison.tests != 1)}"
    return Table(
        f"{'Accuracy' if share else 'Score'} on {comparison.task}{', strict' * ('strict' in summary)}, "
        "with 95% intervals",
        ("model", "accuracy" if share else "score", f"vs {comparison.baseline}", "verdict"),
        tuple(rows),
        f"{summary['problems']} {'problems' if share else 'prompts'} x {summary['num_samples']}; paired differences"
        f"{' in points' * share}; intervals unadjusted; p and verdicts Holm-adjusted ({tests})",
    )


def outcome_table(comparison: Comparison, *, with_bar: bool) -> Table:
    """Shares of each outcome that occurs under strict grading, beside lenient accuracy and length."""
    occurring = {
        name: look
        for name, look in OUTCOMES.items()
        if any(model.summary["categories"].get(name) for model in comparison.models)
    }
    graded = all("lenient" in model.summary for model in comparison.models)
    headers = ("model", *(["outcomes"] if with_bar else []), *(header for header, _ in occurring.values()))
    rows = []
    for model in comparison.models:
        shares = model.summary["categories"]
        picture = bar([(shares.get(name, 0.0), character) for name, (_, character) in occurring.items()], BAR_WIDTH)
        rows.append(
            (
                Cell(model.name),
                *([Cell(picture, style="cyan")] if with_bar else []),
                *(_share(shares.get(name, 0.0)) for name in occurring),
                *([Cell(_percent(model.summary["lenient"]["accuracy"]))] if graded else []),
                Cell(f"{model.summary['mean_length']:.0f}"),
            )
        )
    legend = f"{'  '.join(f'{character} {header}' for header, character in occurring.values())}\n"
    return Table(
        f"How the samples ended{', under strict grading' * graded}",
        (*headers, *(["lenient"] if graded else []), "tokens"),
        tuple(rows),
        f"{legend if with_bar else ''}"
        f"{'format: no answer in the required form; lenient: right in any form; ' * graded}tokens: mean length",
    )


def pass_table(comparison: Comparison) -> Table:
    """Unbiased pass@k."""
    ks = list(comparison.models[0].summary["pass_at_k"])
    rows = [
        (Cell(model.name), *(Cell(_percent(model.summary["pass_at_k"][k])) for k in ks)) for model in comparison.models
    ]
    return Table("Solved within k samples (unbiased)", ("model", *(f"pass@{k}" for k in ks)), tuple(rows))


def _difference(comparison: Comparison, found: Contrast | None) -> Cell:
    if found is None:
        return NONE
    low, high = (signed(end, comparison.scale) for end in found.interval)
    style = STYLES[found.verdict] if found.verdict != "cannot tell" else ""
    return Cell(signed(found.difference, comparison.scale), f"{low} to {high}", style)


def _share(share: float) -> Cell:
    return Cell(_percent(share), style="" if share else "dim")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"

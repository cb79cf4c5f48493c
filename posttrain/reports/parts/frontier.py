"""Over-optimisation: proxy and gold score of the policies along a training run, over their distance from its start.

Floor 5.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evals.frontier import sentence
from posttrain.reports.figures.curves import Frontier, frontier
from posttrain.reports.inputs import Inputs
from posttrain.reports.lineage import FRONTIER, frontier_stages
from posttrain.reports.part import Figure, Finding, Part, Tone
from posttrain.reports.tables import Cell, Table

TITLE = "Over-optimisation"
ABSENT = (
    "No run here kept policies along its way. Add `keep_policy_steps = 10` to the table of the stage that trains, and "
    'behind it `[stage.frontier]` with `type = "frontier"` and that stage\'s name: `policies = "grpo"`.'
)
NOTE = (
    "The KL is that of a whole completion to the policy before training, estimated from samples. It does not measure "
    "how hard was optimised: two methods at the same KL may have optimised more or less. Holding a policy to its start "
    "by a KL penalty slows it down, and did not move the frontier in Gao et al. 2022 (arXiv 2210.10760). Best of n is "
    "chosen by the proxy from samples of the start; its KL, log n - (n - 1) / n, is an upper bound. Intervals are at "
    "95%; those of a fall since the peak hold for all steps together that might have been the peak."
)
FITS = {  # the forms of that paper, d = sqrt(KL)
    "rl": "policies: d ({alpha:.3g} - ({beta:.3g}) log d), off by {rmse:.2g}",
    "best_of_n": "best of n: d ({alpha:.3g} - ({beta:.3g}) d), off by {rmse:.2g}",
}
TONES: dict[str, Tone] = {"over-optimised": "warning", "fell": "worse", "holds": "note"}


def frontier_part(inputs: Inputs) -> Part:
    """Return what was found along the training of each model; `absent` where no run followed its policies."""
    return part_of_frontiers(read_frontiers(inputs), order=[model.name for model in inputs.models])


def read_frontiers(inputs: Inputs) -> dict[str, Any]:
    """Return the content of frontier.json by model, of each seed by itself, as far as it lies beside the training."""
    found = {}
    for model in inputs.models:
        for course in model.courses:
            name = model.name if len(model.courses) == 1 else f"{model.name}, seed {course.seed}"
            for stage in frontier_stages(course):
                found[name] = json.loads((stage.path / FRONTIER).read_bytes())
    return found


def part_of_frontiers(frontiers: Mapping[str, Mapping[str, Any]], *, order: Sequence[str] = ()) -> Part:
    """Return the part of the contents of frontier.json, by model; `order` gives models their colours."""
    if not frontiers:
        return Part("frontier", TITLE, absent=ABSENT)
    return Part(
        key="frontier",
        title=TITLE,
        findings=tuple(
            Finding(TONES[found["verdict"]], f"{name}: {sentence(found)}.") for name, found in frontiers.items()
        ),
        figures=tuple(_figure(number, name, frontiers[name], order) for number, name in enumerate(frontiers, 1)),
        tables=tuple(_table(name, found) for name, found in frontiers.items()),
        note=NOTE,
        data={name: dict(found) for name, found in frontiers.items()},
    )


def _figure(number: int, name: str, found: Mapping[str, Any], order: Sequence[str]) -> Figure:
    points, chosen = found["points"], found["best_of_n"]
    ends = f"proxy from {_mean(points[0], 'proxy')} to {_mean(points[-1], 'proxy')}"
    golds = ", ".join(f"step {p['step']} {_mean(p, 'gold')} at KL {p['kl']['mean']:.3g}" for p in points)
    best = f"best of {chosen[-1]['n']}: proxy {_mean(chosen[-1], 'proxy')}, gold {_mean(chosen[-1], 'gold')}"
    draw = frontier(
        [_curve(name, points, [point["kl"]["mean"] for point in points])],
        title=f"{name}: proxy and gold over distance",
        subtitle=f"{found['prompts']} prompts x {found['num_samples']}; bands: 95% intervals",
        order=order,
        best_of_n=_curve("best of n", chosen, [one["kl"] for one in chosen]),
        apart=True,
    )
    return Figure(f"frontier-{number}", f"{name}: {ends}; gold by step: {golds}; {best}.", draw)


def _curve(name: str, points: Sequence[Mapping[str, Any]], kl: Sequence[float]) -> Frontier:
    def band(kind: str) -> tuple[list[float], list[float]]:
        return [float(point[kind]["low"]) for point in points], [float(point[kind]["high"]) for point in points]

    proxy, gold = ([point[kind]["mean"] for point in points] for kind in ("proxy", "gold"))
    return Frontier(name, kl, proxy, gold, band("proxy"), band("gold"))


def _table(name: str, found: Mapping[str, Any]) -> Table:
    rows = [
        (
            Cell("start" if point["step"] == 0 else f"step {point['step']}"),
            _cell(point["kl"]),
            _cell(point["proxy"]),
            _cell(point["gold"]),
            Cell(f"{point['mean_length']:.0f}"),
        )
        for point in found["points"]
    ]
    rows += [
        (Cell(f"best of {one['n']}"), Cell(f"{one['kl']:.2f}"), _cell(one["proxy"]), _cell(one["gold"]), Cell("-"))
        for one in found["best_of_n"]
        if one["n"] > 1
    ]
    fits = "; ".join(FITS[form].format(**fit) for form, fit in found["fits"].items() if fit is not None)
    caption = f"The gain of gold over the start by least squares, with d = √KL: {fits}." if fits else ""
    return Table(f"{name}, by policy", ("policy", "KL", "proxy", "gold", "tokens"), tuple(rows), caption)


def _mean(point: Mapping[str, Any], kind: str) -> str:
    return f"{point[kind]['mean']:.2f}"


def _cell(mean: Mapping[str, Any]) -> Cell:
    return Cell(f"{mean['mean']:.2f}", f"{float(mean['low']):.2f} to {float(mean['high']):.2f}")

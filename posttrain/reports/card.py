"""A model card of a trained model: what it was made of, what was measured, and what was found wrong with it.

Floor 5: the report's own numbers in the form that the Hub reads: `model-index` in the card's header, and one file of
`.eval_results` for each task whose problems are on the Hub.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.evals.samples import REWARD
from posttrain.reports.contrasts import Comparison
from posttrain.reports.inputs import Course, Inputs, Model, lineage
from posttrain.reports.numbers import plain_difference, plain_interval, plain_p, plain_score, scale_of
from posttrain.reports.part import Figure, Report
from posttrain.reports.style import png
from posttrain.reports.tables import escape
from posttrain.runs import durable

CARD = "README.md"
EVAL_RESULTS, FIGURES = ".eval_results", "figures"
SHOWN = ("scores", "course", "lengths")  # the parts whose first figure stands in the card


@dataclass(frozen=True, slots=True)
class Published:
    """A data set on the Hub, with the licence that its card names."""

    hub: str
    licence: str
    config: str = "default"


PUBLISHED: dict[str, Published] = {
    "gsm8k": Published("openai/gsm8k", "MIT", "main"),
    "math": Published("DigitalLearningGmbH/MATH-lighteval", "MIT"),
    "math500": Published("HuggingFaceH4/MATH-500", "MIT, as MATH"),
    "numina_math_cot": Published("AI-MO/NuminaMath-CoT", "Apache-2.0"),
    "ultrafeedback": Published("openbmb/UltraFeedback", "MIT"),
    "ultrafeedback_binarized": Published("HuggingFaceH4/ultrafeedback_binarized", "MIT"),
    "orca_dpo": Published("Intel/orca_dpo_pairs", "Apache-2.0"),
    "hh_rlhf": Published("Anthropic/hh-rlhf", "MIT"),
    "alpaca": Published("tatsu-lab/alpaca", "CC-BY-NC-4.0"),
    "oasst": Published("OpenAssistant/oasst2", "Apache-2.0"),
    "oasst_pairs": Published("OpenAssistant/oasst2", "Apache-2.0"),
    "mmlu": Published("cais/mmlu", "MIT", "all"),
    "arc_easy": Published("allenai/ai2_arc", "CC-BY-SA-4.0", "ARC-Easy"),
    "arc_challenge": Published("allenai/ai2_arc", "CC-BY-SA-4.0", "ARC-Challenge"),
    "ifeval": Published("google/IFEval", "Apache-2.0"),
}


def write_card(inputs: Inputs, comparisons: Mapping[str, Comparison], report: Report, name: str, out_dir: Path) -> Path:
    """Write the card of one of the models with its figures and results, and return the card's path.

    Raises DataError for a model that no run here trained.
    """
    model = inputs.model(name)
    if not model.courses:
        raise DataError(f"{name} was not trained by a run here: there is nothing to say of how it was made")
    parts = {part.key: part.figures for part in report.parts}
    figures = [found for key in SHOWN if (found := _figure_of(name, parts.get(key, ()))) is not None]
    durable.make_directory(out_dir / FIGURES)
    for figure in figures:
        durable.write_file(out_dir / FIGURES / f"{figure.name}.png", png(figure.draw))
    for task, entry in _entries(model):
        durable.make_directory(out_dir / EVAL_RESULTS)
        durable.write_file(out_dir / EVAL_RESULTS / f"{task}.yaml", _yaml([entry]).encode())
    durable.write_file(out_dir / CARD, card_text(inputs, comparisons, report, name, figures).encode())
    return out_dir / CARD


def _figure_of(name: str, figures: Sequence[Figure]) -> Figure | None:
    """Return the figure of this model, or the first one, of all models."""
    return next((figure for figure in figures if figure.alt.startswith(f"{name},")), next(iter(figures), None))


def card_text(
    inputs: Inputs,
    comparisons: Mapping[str, Comparison],
    report: Report,
    name: str,
    figures: Sequence[Figure] = (),
) -> str:
    """Return the card: a header of YAML, and Markdown."""
    model = inputs.model(name)
    stages = lineage(model.courses[0])
    parts = [
        f"---\n{_header(model, stages)}\n---",
        f"# {name}",
        _made_of(model, stages),
        "## Results",
        _results(comparisons, inputs, name),
        *(f"![{figure.alt}]({FIGURES}/{figure.name}.png)" for figure in figures),
        "## Known failures",
        _failures(report, name),
        "## Intended use",
        "A research model. It was measured on the tasks above and on nothing else; nothing is known of other uses, of "
        "its safety, or of languages and subjects that its data do not have.",
        "## Training data",
        _data(stages),
        "## How to reproduce",
        _reproduce(stages),
    ]
    return "\n\n".join(parts) + "\n"


def _header(model: Model, stages: Sequence[Course]) -> str:
    """Return the card's metadata, as the Hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=PUBLISHED[evaluation.task].hub if evaluation.task in PUBLISHED else evaluation.task,
            dataset_name=label,
            metric_type=metric,
            metric_name=words,
            metric_value=round(value, 6),
            dataset_config=label if label != evaluation.task else None,
            dataset_args={
                "num_samples": evaluation.summary["num_samples"],
                "temperature": evaluation.summary["sampling"].get("temperature"),
            },
        )
        for label, evaluation in model.evaluations.items()
        for metric, words, value in _metrics(evaluation.summary)
    ]
    base = str(stages[0].settings["model"]["name_or_path"])
    datasets = sorted({PUBLISHED[source].hub for source in map(_source, stages) if source in PUBLISHED})
    card = ModelCardData(
        base_model=base if "/" in base and not Path(base).exists() else None,
        datasets=datasets or None,
        library_name="peft" if stages[-1].settings["model"].get("lora_r") else "transformers",
        pipeline_tag="text-generation",
        tags=["posttrain", *dict.fromkeys(stage.stage for stage in stages)],
        model_name=model.name,
        eval_results=results,
    )
    return str(card.to_yaml())


def _metrics(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield metric, name and value: both accuracies where answers are graded, else the score."""
    count = f"{summary['problems']} problems"
    if "strict" not in summary:
        low, high = summary["score"]["low"], summary["score"]["high"]
        yield "score", f"mean score (95% CI {low:.3g} to {high:.3g}, {count})", summary["score"]["mean"]
        return
    for grading in ("strict", "lenient"):
        low, high = (100 * summary[grading][end] for end in ("low", "high"))
        words = f"{grading} accuracy (95% CI {low:.1f}% to {high:.1f}%, {count})"
        yield "exact_match", words, summary[grading]["accuracy"]


def _made_of(model: Model, stages: Sequence[Course]) -> str:
    base = stages[0].settings["model"]["name_or_path"]
    steps = [f"{stage.stage} on {_source(stage)}" for stage in stages]
    seeds = ", ".join(str(course.seed) for course in model.courses)
    return (
        f"Trained with posttrain from `{base}`: {', then '.join(steps)}. Seed{'s' * (len(model.courses) > 1)} {seeds}."
    )


def _results(comparisons: Mapping[str, Comparison], inputs: Inputs, name: str) -> str:
    """Return the table of results: value, interval, n, and the difference from the baseline."""
    lines = [
        f"| task | metric | value (95% CI) | n | vs {escape(inputs.baseline)} |",
        "|---|---|---:|---:|---:|",
    ]
    for task, comparison in comparisons.items():
        result = next((model for model in comparison.models if model.name == name), None)
        if result is None:
            continue
        summary, found = result.summary, result.against_baseline
        difference = "-"
        if found is not None:
            difference = f"{plain_difference(found.difference, found.interval, comparison.scale)}, "
            difference += f"{plain_p(found.adjusted_p)}): {found.verdict}"
        count = f"{summary['problems']} x {summary['num_samples']}"
        rows = [("strict accuracy" if "strict" in summary else "score", summary["score"], difference)]
        if "lenient" in summary:
            rows.append(("lenient accuracy", summary["lenient"] | {"mean": summary["lenient"]["accuracy"]}, "-"))
        if reward := summary.get("rewards", {}).get(REWARD):
            rows.append(("reward", reward, "-"))
        for metric, value, against in rows:
            scale = "number" if metric == "reward" else comparison.scale
            interval = plain_interval(value["low"], value["high"], scale)
            told = f"{plain_score(value['mean'], scale)} ({interval})"
            lines.append(f"| {escape(task)} | {metric} | {told} | {count} | {against} |")
    evaluation = next(iter(inputs.model(name).evaluations.values()))
    sampling = evaluation.summary["sampling"]
    graded = f"grader version {evaluation.summary['grader_version']}; " if "strict" in evaluation.summary else ""
    lines += [
        "",
        f"Intervals at 95%; p adjusted for all tests of the comparison (Holm). {graded}temperature "
        f"{sampling.get('temperature')}, at most {sampling.get('max_completion_length')} tokens.",
    ]
    return "\n".join(lines)


def _failures(report: Report, name: str) -> str:
    """Return what the report warns of that names the model."""
    told = dict.fromkeys(
        finding.text
        for part in report.parts
        for finding in part.findings
        if finding.tone in ("warning", "worse") and finding.text.startswith((f"{name} ", f"{name}:"))
    )
    if not told:
        return "The report of this comparison warns of none; that says what was looked for, not that there are none."
    return "\n".join(f"- {escape(text)}" for text in told)


def _data(stages: Sequence[Course]) -> str:
    lines = []
    for source in dict.fromkeys(map(_source, stages)):
        known = PUBLISHED.get(source)
        where = f"[{known.hub}](https://huggingface.co/datasets/{known.hub}), licence {known.licence}" if known else ""
        lines.append(f"- {escape(source)}{': ' * bool(where)}{where}")
    return "\n".join([*lines, "", "Licences as the data sets' own cards name them; check them before you publish."])


def _reproduce(stages: Sequence[Course]) -> str:
    commands = dict.fromkeys(str(stage.environment.get("command", "")) for stage in stages)
    text = "\n".join(command for command in commands if command)
    versions = stages[-1].environment
    told = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if versions.get(name))
    revision = versions.get("git_revision")
    return f"```console\n{text}\n```\n\n{told}{f'; posttrain at {revision}' if revision else ''}."


def _source(stage: Course) -> str:
    return Path(str(stage.settings.get("data", {}).get("source", "its own corpus"))).name


def _entries(model: Model) -> Iterator[tuple[str, Any]]:
    """Yield the entry of each task whose problems are on the Hub."""
    from huggingface_hub import EvalResultEntry

    for evaluation in model.evaluations.values():
        published = PUBLISHED.get(evaluation.task)
        if published is None:
            continue
        summary = evaluation.summary
        low, high = summary["score"]["low"], summary["score"]["high"]
        notes = f"95% CI {plain_interval(low, high, scale_of([evaluation]))}, {summary['problems']} problems, posttrain"
        yield (
            evaluation.task,
            EvalResultEntry(published.hub, published.config, round(summary["score"]["mean"], 6), notes=notes),
        )


def _yaml(entries: Sequence[Any]) -> str:
    from huggingface_hub import eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    return str(yaml_dump(eval_result_entries_to_yaml(list(entries))))

"""Which instructions of their rows samples follow, and the four accuracies that IFEval makes of it.

Floor 4, pure: "Instruction-Following Evaluation for Large Language Models" (Zhou et al. 2023, arXiv 2311.07911),
section 2.2; the accuracies bear the names that lm-evaluation-harness gives them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.evals.samples import Row, mean_with_interval, metric
from posttrain.rewards.instructions.verdicts import followed_loosely, followed_strictly, read_instructions

GRADES = {"strict": "followed", "loose": "followed_loosely"}  # columns of a sample, a verdict for each instruction


def instruction_verdicts(columns: Mapping[str, Any], text: str) -> dict[str, list[Any]]:
    """Return the names of a row's instructions and whether a completion follows each; {} where it names none."""
    instructions = read_instructions(columns)
    if not instructions:
        return {}
    return {
        "instructions": [each.name for each in instructions],
        "followed": followed_strictly(text, instructions),
        "followed_loosely": followed_loosely(text, instructions),
    }


def summarise_instructions(rows: Sequence[Row]) -> dict[str, Any]:
    """Return `instructions`, the four accuracies and the subsets by kind, and the former as the harness's `results`.

    By prompt a sample counts as 1 where all its instructions are followed; by instruction each counts by itself.
    {} where no row names instructions.
    """
    asked = [row for row in rows if row.get("instructions")]
    if not asked:
        return {}
    whole = {f"prompt_level_{grade}_acc": column for grade, column in GRADES.items()}
    prompts = [{**row, **{name: float(all(row[column])) for name, column in whole.items()}} for row in asked]
    by_prompt = {name: mean_with_interval(prompts, name) for name in whole}
    by_instruction = {
        f"inst_level_{grade}_acc": float(np.mean([followed for row in asked for followed in row[column]]))
        for grade, column in GRADES.items()
    }
    results = [metric(name, prompts) for name in by_prompt]
    results.append({f"{name},none": value for name, value in by_instruction.items()})
    return {
        "instructions": {**by_prompt, **by_instruction, "subsets": {"instruction": _by_kind(asked)}},
        "results": {name: value for each in results for name, value in each.items()},
    }


def _by_kind(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the strict share of each kind as a subset, with the loose one; a sample's instructions of it count once.

    That is where all of them are followed, so that an interval is one of outcomes of 0 and 1.
    """
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        for kind in dict.fromkeys(row["instructions"]):
            places = [place for place, name in enumerate(row["instructions"]) if name == kind]
            grades = {grade: float(all(row[column][place] for place in places)) for grade, column in GRADES.items()}
            kinds.setdefault(kind, []).append({**row, **grades})
    return {
        kind: {
            "problems": len({row["problem_id"] for row in kinds[kind]}),
            **mean_with_interval(kinds[kind], "strict"),
            "loose": mean_with_interval(kinds[kind], "loose")["mean"],
        }
        for kind in sorted(kinds)
    }

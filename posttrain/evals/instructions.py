"""Which instructions of their rows samples follow, and the four accuracies that IFEval makes of it.

Floor 4, pure: "Instruction-Following Evaluation for Large Language Models" (Zhou et al. 2023, arXiv 2311.07911),
section 2.2; the accuracies bear the names that lm-evaluation-harness gives them.
"""

from collections import Counter
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
    """Return `instructions`, the four accuracies and those of each kind, and them as the harness's `results`.

    By prompt a sample counts as 1 where all its instructions are followed, with a 95% interval; by instruction each
    counts by itself. {} where no row names instructions.
    """
    asked = [row for row in rows if row.get("instructions")]
    if not asked:
        return {}
    whole = {f"prompt_level_{grade}_acc": column for grade, column in GRADES.items()}
    graded = [{**row, **{name: float(all(row[column])) for name, column in whole.items()}} for row in asked]
    verdicts = {
        grade: [pair for row in asked for pair in zip(row["instructions"], row[column], strict=True)]
        for grade, column in GRADES.items()
    }
    by_instruction = {f"inst_level_{grade}_acc": _share(pairs) for grade, pairs in verdicts.items()}
    results = [metric(name, graded) for name in whole]
    results.append({f"{name},none": value for name, value in by_instruction.items()})
    return {
        "instructions": {
            **{name: mean_with_interval(graded, name) for name in whole},
            **by_instruction,
            "by_kind": _by_kind(verdicts),
        },
        "results": {name: value for each in results for name, value in each.items()},
    }


def _by_kind(verdicts: Mapping[str, Sequence[tuple[str, bool]]]) -> dict[str, dict[str, float]]:
    counts = Counter(name for name, _ in verdicts["strict"])
    return {
        kind: {
            "instructions": count,
            **{grade: _share([pair for pair in pairs if pair[0] == kind]) for grade, pairs in verdicts.items()},
        }
        for kind, count in sorted(counts.items())
    }


def _share(pairs: Sequence[tuple[str, bool]]) -> float:
    return float(np.mean([followed for _, followed in pairs]))

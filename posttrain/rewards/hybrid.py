"""The hybrid reward: verification, and heuristics of form beside it, all programs.

Pure. Its heuristics pay wrong answers too, up to 0.9 of 1.9: a policy learns to game them, which is to be seen in the
parts. Each is a reward by itself, `HYBRID_PARTS` their weights, so that they can be watched or weighted apart.
"""

from collections.abc import Sequence
from typing import Any

from posttrain.rewards.formats import format_boxed, longer_than, step_words
from posttrain.rewards.rules import numeric_match
from posttrain.settings.rewards import LongerThanOptions, NumericMatchOptions

HYBRID_PARTS = {"numeric_match": 1.0, "step_words": 0.2, "format_boxed": 0.5, "longer_than": 0.2}


def hybrid(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 for the right number, 0.2 for step words, 0.5 for a box, 0.2 for more than 100 characters, added up."""
    weights = HYBRID_PARTS.values()
    parts = (
        numeric_match(NumericMatchOptions(), prompts, completions, **columns),
        step_words(prompts, completions),
        format_boxed(prompts, completions),
        longer_than(LongerThanOptions(), prompts, completions),
    )
    verified = parts[0]
    return [
        None
        if verified[place] is None
        else sum(w * (part[place] or 0.0) for w, part in zip(weights, parts, strict=True))
        for place in range(len(completions))
    ]

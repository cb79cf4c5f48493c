"""Rewards for the length of a completion, in tokens with its end token.

Pure. What is not positive is a punishment: it moves length, and pays for nothing.
"""

import math
from collections.abc import Sequence
from typing import Any

from posttrain.rewards.arguments import groups, token_lengths
from posttrain.rewards.rules import graded
from posttrain.settings.rewards import CosineLengthOptions, LengthBandOptions, SoftOverlongOptions


def length_band(
    options: LengthBandOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a completion of min_length to max_length tokens, else 0."""
    longest = math.inf if options.max_length is None else options.max_length
    return [float(options.min_length <= length <= longest) for length in token_lengths(columns)]


def cosine_length(
    options: CosineLengthOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """A right answer's score falls with its length, a wrong one's rises, both along half a cosine.

    "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), eq. 1, without its extra punishment at
    the limit. The curve stays where it is beyond max_length: a cosine would turn.
    """
    longest = _known("cosine_length", options.max_length)
    ends = ((options.wrong_short, options.wrong_long), (options.right_short, options.right_long))
    verdicts = graded(completions, columns, "lenient")
    return [
        None if right is None else _along_cosine(*ends[int(right)], min(length / longest, 1.0))
        for right, length in zip(verdicts, token_lengths(columns), strict=True)
    ]


def soft_overlong(
    options: SoftOverlongOptions, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """0 up to max_length - buffer tokens, from there falling to -1 at max_length (DAPO, arXiv 2503.14476, eq. 13)."""
    longest = _known("soft_overlong", options.max_length)
    buffer = max(longest // 5, 1) if options.buffer is None else min(options.buffer, longest)
    free = longest - buffer
    return [-min(max(length - free, 0) / buffer, 1.0) for length in token_lengths(columns)]


def length_control(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """0.5 for the shortest of a group to -0.5 for the longest; a wrong answer gets no more than 0.

    The length reward of "Kimi k1.5: Scaling Reinforcement Learning with LLMs" (arXiv 2501.12599), section 2.3.3; 0 in
    a group of equal lengths.
    """
    verdicts, lengths = graded(completions, columns, "lenient"), token_lengths(columns)
    scores: list[float | None] = [None] * len(lengths)
    for group in groups(prompts, columns):
        shortest, longest = min(lengths[place] for place in group), max(lengths[place] for place in group)
        for place in group:
            shortness = 0.5 - (lengths[place] - shortest) / (longest - shortest) if longest > shortest else 0.0
            if (right := verdicts[place]) is not None:
                scores[place] = shortness if right else min(0.0, shortness)
    return scores


def _along_cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * way)) / 2.0


def _known(name: str, max_length: int | None) -> int:
    assert max_length is not None, f"{name} is told the limit of its completions by built_in_rewards"
    return max_length

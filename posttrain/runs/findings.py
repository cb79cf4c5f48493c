"""What is found wrong with a run while it runs, and the words in which the run tells it.

Floor 1: knows names, sentences and rollouts by their places, not what makes a run healthy (that is
`stages/health.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HEALTHY = "healthy"


class RolloutPlace(NamedTuple):
    """Where a rollout lies in its step's file."""

    prompt_id: str
    sample: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says of a step."""

    check: str  # the check's name
    text: str  # what is the case, with its numbers
    advice: str  # what to try, with settings to paste
    show: str  # flags of `posttrain rollouts` that show it
    rollouts: tuple[RolloutPlace, ...] = ()  # some that show it, of this step


# From the rows of metrics.jsonl up to this step, and this step's rollouts: what is wrong now, the worst first.
Watch = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], Sequence[Finding]]


def health_line(findings: Sequence[Finding]) -> str:
    """Return how a run is, in one line: its worst finding, and how many there are beside it."""
    if not findings:
        return HEALTHY
    others = f"  (and {', '.join(finding.check for finding in findings[1:])})" if findings[1:] else ""
    return f"{findings[0].check}: {findings[0].text}{others}"


def warning(finding: Finding, step: int, directory: Path) -> str:
    """Return what a run tells of a finding that begins."""
    return (
        f"warning[{finding.check}] step {step}: {finding.text}\n"
        f"  look: posttrain rollouts {directory} --step {step} {finding.show}\n"
        f"  try: {finding.advice}"
    )

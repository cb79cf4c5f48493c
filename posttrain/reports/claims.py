"""Sentences that a test must support before a report says them.

Floor 5, pure.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from posttrain.evals.stats import holm
from posttrain.evals.verdicts import ALPHA
from posttrain.reports.numbers import plain_p
from posttrain.reports.part import Finding, Tone


class Claim(NamedTuple):
    """A sentence without its full stop, and the p-value of the test that it stands on."""

    tone: Tone
    text: str
    p: float


class Tested(NamedTuple):
    """Claims that were tested together, with Holm's adjusted p-values."""

    claims: tuple[Claim, ...]
    adjusted: tuple[float, ...]

    @property
    def holds(self) -> tuple[bool, ...]:
        """Which claims pass at 5%, all taken together."""
        return tuple(p < ALPHA for p in self.adjusted)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every claim in words, with its adjusted p-value, those that do not hold too."""
        return tuple(_with_p(claim.text, p) for claim, p in zip(self.claims, self.adjusted, strict=True))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The claims that hold."""
        rows = zip(self.claims, self.sentences, self.holds, strict=True)
        return tuple(Finding(claim.tone, sentence) for claim, sentence, holds in rows if holds)

    @property
    def data(self) -> list[dict[str, Any]]:
        """All claims as plain JSON."""
        rows = zip(self.claims, self.sentences, self.adjusted, self.holds, strict=True)
        return [
            {"text": sentence, "p": claim.p, "adjusted_p": adjusted, "holds": holds}
            for claim, sentence, adjusted, holds in rows
        ]


def adjust(claims: Sequence[Claim]) -> Tested:
    """Return the claims with p-values adjusted for one another (Holm 1979): in at most 5% of reports is one wrong."""
    return Tested(tuple(claims), tuple(holm([claim.p for claim in claims])))


def _with_p(text: str, p: float) -> str:
    """Return the sentence with its p-value, in the brackets at its end where it has some."""
    return f"{text[:-1]}, {plain_p(p)})." if text.endswith(")") else f"{text} ({plain_p(p)})."

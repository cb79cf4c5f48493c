"""Whether both sides compute the same thing: losses and gradient norms within 2%, or the same likeliest tokens."""

from typing import Any

from benchmarks.workloads import Workload

TOLERANCE = 0.02
SAME_TOKENS = 0.5  # at least, in bfloat16: near ties fall either way, and what follows one differs
SAME_TOKENS_EXACT = 0.98  # at least, in float32


class DisagreementError(Exception):
    """The sides do not compute the same thing, so their seconds cannot be compared."""


def compare(ours: dict[str, Any], peer: dict[str, Any], workload: Workload, *, exact: bool = False) -> dict[str, float]:
    """Return the relative differences of two reports of the same step; raise DisagreementError beyond the tolerance.

    Generation is compared by the share of equal tokens. `exact` says that both sides computed in float32.
    """
    if "greedy" in ours:
        tokens = [pair for rows in zip(ours["greedy"], peer["greedy"], strict=True) for pair in zip(*rows, strict=True)]
        share = sum(a == b for a, b in tokens) / len(tokens)
        needed = SAME_TOKENS_EXACT if exact else SAME_TOKENS
        if share < needed:
            raise DisagreementError(
                f"{workload.name}: {share:.0%} of the likeliest tokens are equal, expected at least {needed:.0%}"
            )
        return {"other_tokens": 1 - share}
    differences = {name: difference(ours[name], peer[name]) for name in ("loss", "grad_norm")}
    for name, value in differences.items():
        if not value <= TOLERANCE:
            raise DisagreementError(
                f"{workload.name}: {name} is {ours[name]:.6g} on our side and {peer[name]:.6g} on the peer's, "
                f"{value:.1%} apart; expected at most {TOLERANCE:.0%}"
            )
    return differences


def difference(a: float, b: float) -> float:
    """Return |a - b| over the larger of the two, 0 where both are 0; NaN where one is."""
    scale = max(abs(a), abs(b))
    return abs(a - b) / scale if scale else abs(a - b)

"""The results as a Markdown table, each beside its bar; pure text."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.pairs import spread
from benchmarks.workloads import Bars

Row = Mapping[str, Any]
NOTES = (
    "Seconds are medians of the counted steps, taken in turn, with half their range over the median. Memory is the "
    "peak of each side's own process. Peak share: the useful matrix work of a step (each distinct token once, nothing "
    "computed twice) over seconds and the matrix peak, of bfloat16 or of float32 where that is faster, measured after "
    "each step; the median. Apart is the larger relative difference of loss and gradient norm in a step on the same "
    "tokens."
)
HEADER = ("work", "TRL", "ours", "times faster", "TRL's memory", "ours", "share", "TRL's peak share", "ours", "apart")


def render(results: Mapping[str, Any]) -> str:
    """Return the whole report: machine, table, bars met and missed, the peer's settings, growth of the curves."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, {machine['memory_gb']:.0f} GB, "
        f"Python {machine['python']}, {versions}; "
        f"measured matrix peak {machine['bfloat16_flops'] / 1e9:.0f} GFLOP/s in bfloat16 and "
        f"{machine['float32_flops'] / 1e9:.0f} in float32, memory read at {machine['bandwidth'] / 1e9:.0f} GB/s.",
        "",
        *table(HEADER, [cells(row) for row in results["rows"].values()]),
        "",
        NOTES,
        "",
        *bar_lines(results["rows"]),
    ]
    if results["tuning"]:
        lines += [
            "",
            "TRL's settings, the fastest of those tried (seconds and peak memory of a step of a smaller batch):",
            "",
        ]
        lines += [f"- {kind}: {tuning_line(tuned)}" for kind, tuned in results["tuning"].items()]
    if results["curves"]:
        header = ("curve", "from", "to", "TRL grows", "ours grows", "TRL's memory grows", "ours grows")
        lines += ["", *table(header, [growth(name, curve) for name, curve in results["curves"].items()])]
    return "\n".join(lines) + "\n"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def cells(row: Row) -> tuple[str, ...]:
    """Return a workload's row of the table."""
    ours, peer = row["ours"], row["peer"]
    return (
        f"{row['shape']}, {row['workload']}",
        _seconds(peer),
        _seconds(ours),
        f"{speedup(row):.1f}",
        _gigabytes(peer),
        _gigabytes(ours),
        f"1/{1 / memory_share(row):.1f}",
        f"{row['peak_share']['peer']:.0%}",
        f"{row['peak_share']['ours']:.0%}",
        _apart(row["differences"]),
    )


def speedup(row: Row) -> float:
    """Return the peer's seconds over ours; where the sides drew different numbers of tokens, seconds a token."""
    return float(_cost(row["peer"]) / _cost(row["ours"]))


def memory_share(row: Row) -> float:
    """Return our peak memory over the peer's."""
    return float(row["ours"]["peak_bytes"] / row["peer"]["peak_bytes"])


def bar_lines(rows: Mapping[str, Row]) -> list[str]:
    """Return a line for each bar, said to be met or missed."""
    return [f"- {'met' if met else 'MISSED'}: {text}" for row in rows.values() for met, text in bars(row, rows)]


def bars(row: Row, rows: Mapping[str, Row]) -> Iterator[tuple[bool, str]]:
    """Yield each bar of a workload: whether it is met, and how."""
    held = Bars(**row["bars"])
    name = f"{row['shape']}, {row['workload']}"
    if held.speedup is not None:
        yield speedup(row) >= held.speedup, f"{name}: {speedup(row):.2f} times TRL's speed, bar {held.speedup:g}"
    if held.memory is not None:
        share = memory_share(row)
        yield share <= held.memory, f"{name}: 1/{1 / share:.1f} of TRL's memory, bar 1/{1 / held.memory:g}"
    if held.gigabytes is not None:
        used = row["ours"]["peak_bytes"] / 1e9
        yield used <= held.gigabytes, f"{name}: {used:.2f} GB, bar {held.gigabytes:g} GB"
    if held.peak_share is not None:
        share = row["peak_share"]["ours"]
        yield share >= held.peak_share, f"{name}: {share:.0%} of the matrix peak, bar {held.peak_share:.0%}"
    even = rows.get(f"{row['shape']}, {row['workload'].partition(',')[0]}")
    if held.skew is not None and even is not None:
        ratio = _cost(row["ours"]) / _cost(even["ours"])
        yield (
            ratio <= held.skew,
            f"{name}: {ratio:.2f} times the time of as many tokens without skew, bar {held.skew:g}",
        )


def tuning_line(tuned: Mapping[str, Any]) -> str:
    """Return the chosen settings, and what the others took."""
    tried = [f"{name} {_seconds(side)}" for name, side in tuned["small"].items()]
    variants = [f"{name} {_seconds(side)}, {_gigabytes(side)}" for name, side in tuned["full"].items()]
    return f"{tuned['chosen']} (of {'; '.join(tried)}{'; in full: ' if variants else ''}{'; '.join(variants)})"


def growth(name: str, curve: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how much seconds and memory grow from a curve's first point to its last, on both sides."""
    points = curve["points"]
    first, last = points[min(points, key=int)], points[max(points, key=int)]
    measures = [(what, side) for what in ("seconds", "peak_bytes") for side in ("peer", "ours")]
    ratios = [last[side][what] / first[side][what] for what, side in measures]
    return (name, min(points, key=int), max(points, key=int), *(f"x {ratio:.2f}" for ratio in ratios))


def _cost(side: Row) -> float:
    return float(side["seconds"] / (side.get("tokens") or 1))


def _seconds(side: Row) -> str:
    return f"{side['seconds']:.2f} s ± {spread(side['all_seconds']) / 2:.0%}"


def _gigabytes(side: Row) -> str:
    return f"{side['peak_bytes'] / 1e9:.2f} GB"


def _apart(differences: Mapping[str, float]) -> str:
    if "other_tokens" in differences:
        return f"{1 - differences['other_tokens']:.0%} of tokens equal"
    return f"{max(differences.values()):.2%}"

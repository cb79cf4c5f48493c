"""Measure posttrain and TRL side by side: `python -m benchmarks`, or `make bench`.

Results are written after each workload; measuring some again replaces their rows and keeps the others.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.check import DisagreementError
from benchmarks.curves import plot
from benchmarks.machine import bandwidth, describe_machine, matrix_peak
from benchmarks.pairs import WorkerError
from benchmarks.results import Results
from benchmarks.texts import read_problems
from benchmarks.workloads import CURVES, QUICK, SMOL, WORKLOADS, Curve, Workload


def main() -> int:
    """Measure what was asked for; return 0, or 1 where a side failed or the sides disagreed."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    results = Results(arguments.out)
    machine = describe_machine(arguments.threads)
    print(f"{machine['processor']}, {arguments.threads} threads", flush=True)
    peaks = {dtype: matrix_peak(dtype) for dtype in ("bfloat16", "float32")}
    machine |= {f"{dtype}_flops": flops for dtype, (flops, _) in peaks.items()}
    _, fastest = max(peaks.values())
    results.put_machine(machine | {"peak_product": fastest, "bandwidth": bandwidth()})
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        bench = Bench(results, Path(directory), read_problems(arguments.gsm8k), arguments.threads, arguments.repeats)
        workloads = chosen_workloads(arguments)
        try:
            if not arguments.quick:
                for kind in dict.fromkeys(workload.kind for workload in workloads):
                    bench.fastest_settings(kind, again=arguments.retune)
            for workload in workloads:
                bench.measure(workload, bench.known_settings(workload.kind))
            for curve in chosen_curves(arguments):
                bench.measure_curve(curve)
                plot(curve.name, results.get("curves", curve.name), arguments.out)
        except (DisagreementError, WorkerError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(results.report())
    return 0


def parse() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--workloads", nargs="*", help="measure those whose name has one of these words in it")
    parser.add_argument("--shapes", nargs="*", help="measure these shapes only")
    parser.add_argument("--curves", nargs="*", help="curves whose name has one of these words; none given: all")
    parser.add_argument("--repeats", type=int, help="counted steps of each side, instead of each workload's own number")
    parser.add_argument("--quick", action="store_true", help="three workloads, two steps, no search for TRL's settings")
    parser.add_argument("--retune", action="store_true", help="search for TRL's fastest settings again")
    parser.add_argument(
        "--gsm8k", type=Path, help="GSM8K's train.jsonl; without it rows of the same lengths are made up"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory of the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = arguments.repeats or 2
    return arguments


def chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    """Return the workloads that the arguments name: all of them where they name neither workloads nor curves."""
    if arguments.quick and arguments.workloads is None:
        return [workload for workload in WORKLOADS if workload.name in QUICK and workload.shape == SMOL]
    if arguments.workloads is None and arguments.curves is not None:
        return []
    return [
        workload
        for workload in WORKLOADS
        if (arguments.workloads is None or any(word in workload.name for word in arguments.workloads))
        and (arguments.shapes is None or workload.shape in arguments.shapes)
    ]


def chosen_curves(arguments: argparse.Namespace) -> list[Curve]:
    """Return the curves that the arguments name: all of them in a full run."""
    if arguments.curves is None:
        return [] if arguments.quick or arguments.workloads or arguments.shapes else CURVES
    return [curve for curve in CURVES if not arguments.curves or any(word in curve.name for word in arguments.curves)]


if __name__ == "__main__":
    sys.exit(main())

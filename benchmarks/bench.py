"""Measure workloads and curves: prepare files, find the peer's fastest settings, run both sides, keep the result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoTokenizer

from benchmarks.check import compare
from benchmarks.machine import SquareProduct
from benchmarks.pairs import Pair, Side, Worker, run_alone, run_pair
from benchmarks.peer_settings import PeerSettings, find_fastest, peer_dtypes
from benchmarks.results import Results
from benchmarks.shapes import write_model
from benchmarks.texts import Lengths, Problem, write_rows
from benchmarks.worker import Task
from benchmarks.workloads import Curve, Workload

TUNING_REPEATS = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files that both sides of a workload read, and the tokens of its rows."""

    base: Path
    adapter: Path
    rows: Path
    lengths: Lengths


class Bench:
    """A benchmark in progress: its results, and the files that its workers read and write."""

    def __init__(
        self, results: Results, directory: Path, problems: list[Problem], threads: int, repeats: int | None = None
    ) -> None:
        """Take `repeats` counted steps of each side; None takes each workload's own number."""
        self._results, self._directory, self._problems = results, directory, problems
        self._threads, self._repeats = threads, repeats
        self._models: dict[str, tuple[Path, Path]] = {}
        self._checked: dict[tuple[str, str, int], Mapping[str, float]] = {}
        self._files = 0

    def measure(self, workload: Workload, peer: PeerSettings) -> None:
        """Measure a workload on both sides, after a check in float32, and keep its row."""
        name = f"{workload.shape}, {workload.name}"
        print(f"{name}: TRL with {peer}", flush=True)
        exact = self.check_exactly(workload)
        row = self.measured(workload, peer)
        self._results.put("rows", name, row | {"differences_float32": exact})
        print(f"  {_sentence(row)}, apart {row['differences']}, in float32 {exact}", flush=True)

    def measure_curve(self, curve: Curve) -> None:
        """Measure a curve's points on both sides and keep them."""
        points: dict[str, Any] = {}
        for size, workload in curve.points.items():
            points[str(size)] = self.measured(workload, self.known_settings(workload.kind))
            print(f"{workload.name}: {_sentence(points[str(size)])}", flush=True)
        self._results.put("curves", curve.name, {"axis": curve.axis, "slower": curve.slower, "points": points})

    def known_settings(self, kind: str) -> PeerSettings:
        """Return the peer's fastest settings where an earlier search found them, else the default ones."""
        found = self._results.get("tuning", kind)
        if found:
            return PeerSettings(**found["settings"])
        tried = peer_dtypes(self._results.machine)
        return PeerSettings() if PeerSettings().dtype in tried else PeerSettings(tried[0])

    def fastest_settings(self, kind: str, *, again: bool) -> PeerSettings:
        """Return the peer's fastest settings for a kind of work, searched for where unknown, or `again`."""
        if again or self._results.get("tuning", kind) is None:

            def run(settings: PeerSettings, workload: Workload) -> Side:
                task = self._task("peer", workload, self._prepare(workload), settings)
                side = run_alone(task, repeats=TUNING_REPEATS, threads=self._threads)
                print(f"  TRL, {kind}, {workload.sequences} rows, {settings}: {side.median:.2f} s", flush=True)
                return side

            self._results.put("tuning", kind, find_fastest(kind, run, peer_dtypes(self._results.machine)))
        return self.known_settings(kind)

    def check_exactly(self, workload: Workload) -> Mapping[str, float]:
        """Compare a step of a smaller batch in float32 on both sides, once for each kind; return the differences."""
        small = replace(
            workload, name=f"{workload.kind} in float32", rows=2, num_samples=min(workload.num_samples, 4), longest=None
        )
        small = replace(small, completion_length=16, prompt_length=None)
        key = (small.kind, small.shape, small.num_iterations)
        if key not in self._checked:
            prepared = self._prepare(small)
            exact = PeerSettings("float32")
            tasks = [self._task(side, small, prepared, exact, dtype="float32") for side in ("ours", "peer")]
            with Worker(tasks[0], self._threads) as ours, Worker(tasks[1], self._threads) as peer:
                ours.ready()
                peer.ready()
                self._checked[key] = compare(ours.step(), peer.step(), small, exact=True)
        return self._checked[key]

    def measured(self, workload: Workload, peer: PeerSettings) -> dict[str, Any]:
        """Return a workload's row of the results."""
        prepared = self._prepare(workload)
        # The compared step of a policy stage samples nothing, so sampling has to warm up in a step of its own.
        pair = run_pair(
            self._task("ours", workload, prepared, peer),
            self._task("peer", workload, prepared, peer),
            repeats=self._repeats or workload.repeats,
            warmup=1 if workload.kind in ("grpo", "generate") else 0,
            threads=self._threads,
            product=SquareProduct(*self._results.machine["peak_product"]),
        )
        return row_of(workload, peer, pair, prepared.lengths)

    def task(self, side: str, workload: Workload, peer: PeerSettings) -> Task:
        """Return one side's task with the files that it reads."""
        return self._task(side, workload, self._prepare(workload), peer)

    def _prepare(self, workload: Workload) -> Prepared:
        shape = workload.model_shape
        if shape.name not in self._models:
            texts = [text for problem in self._problems for text in problem]
            self._models[shape.name] = write_model(shape, texts, self._directory / shape.name)
        base, adapter = self._models[shape.name]
        self._files += 1
        rows = self._directory / f"rows-{self._files}.jsonl"
        return Prepared(
            base, adapter, rows, write_rows(workload, self._problems, AutoTokenizer.from_pretrained(base), rows)
        )

    def _task(
        self, side: str, workload: Workload, prepared: Prepared, peer: PeerSettings, *, dtype: str = "auto"
    ) -> Task:
        self._files += 1
        return Task(
            side=side,
            workload=workload,
            base=str(prepared.base),
            adapter=str(prepared.adapter),
            rows=str(prepared.rows),
            directory=str(self._directory / f"{side}-{self._files}"),
            dtype=dtype,
            peer=asdict(peer),
        )


def row_of(workload: Workload, peer: PeerSettings, pair: Pair, lengths: Lengths) -> dict[str, Any]:
    """Return the row of a measured pair."""
    sides = {"ours": pair.ours, "peer": pair.peer}
    shares = {}
    for name, side in sides.items():
        drawn = side.steps[-1].get("tokens") or lengths.completion
        flops = useful_flops(workload, lengths._replace(completion=drawn))
        steps = zip(side.seconds, side.peaks, strict=True)
        shares[name] = round(median(flops / (seconds * peak) for seconds, peak in steps), 4)
    return {
        "shape": workload.shape,
        "workload": workload.name,
        "bars": asdict(workload.bars),
        "peer_settings": str(peer),
        "prompt_tokens": lengths.prompt,
        "completion_tokens": lengths.completion,
        **{name: side.to_json() for name, side in sides.items()},
        "peak_share": shares,
        "differences": pair.differences,
        "idle_share": round(pair.idle_share, 4),
    }


def useful_flops(workload: Workload, lengths: Lengths) -> float:
    """Return the matrix work that a step needs, each distinct token once and nothing computed twice."""
    shape = workload.model_shape
    tokens = lengths.prompt + lengths.completion
    scored = 0 if workload.kind == "rm" else lengths.completion
    forward, backward = shape.forward_flops(tokens, scored), shape.backward_flops(tokens, scored)
    match workload.kind:
        case "generate":
            return forward
        case "dpo":
            return 2 * forward + backward
        case "grpo":
            old = forward if workload.num_iterations > 1 else 0.0
            return forward + old + workload.num_iterations * (forward + backward)
        case _:
            return forward + backward


def _sentence(row: Mapping[str, Any]) -> str:
    sides = (
        f"{name} {row[name]['seconds']:.2f} s, {row[name]['peak_bytes'] / 1e9:.2f} GB" for name in ("ours", "peer")
    )
    return "; ".join(sides)

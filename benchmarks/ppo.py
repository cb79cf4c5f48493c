"""PPO's steps beside GRPO's, both ours: `python -m benchmarks.ppo`.

The same prompts, completions and number of updates at SmolLM2-135M's shape, in turn; PPO adds a critic and what policy,
reference and critic say of the rollouts before the update.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.machine import describe_machine
from benchmarks.pairs import Side, Worker, spread
from benchmarks.peer_settings import PeerSettings
from benchmarks.results import Results
from benchmarks.tables import table
from benchmarks.texts import read_problems
from benchmarks.workloads import SMOL, Workload

GRPO = Workload("GRPO", "grpo", SMOL, rows=4, num_samples=4)
WORKLOADS = [
    GRPO,
    replace(GRPO, name="GRPO with a reference", kl_coef=0.05),
    replace(GRPO, name="PPO, a critic adapter and a reference", kind="ppo", kl_coef=0.05),
    replace(GRPO, name="PPO, a shared critic and a reference", kind="ppo", kl_coef=0.05, critic="shared"),
]
HEADER = ("4 prompts x 4 completions x 64 tokens", "seconds", "steps a minute", "time", "memory", "memory")


def main() -> None:
    """Measure, print and write `ppo.json` and `ppo.md`."""
    parser = argparse.ArgumentParser(prog="benchmarks.ppo", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="counted steps of each")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's train.jsonl; else rows of the same lengths are made up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        bench = Bench(Results(arguments.out), Path(directory), read_problems(arguments.gsm8k), arguments.threads, None)
        sides = run_in_turn(bench, WORKLOADS, repeats=arguments.repeats, threads=arguments.threads)
    machine = describe_machine(arguments.threads)
    report = "\n".join(table(HEADER, rows_of(sides)))
    found = {"machine": machine, "rows": {name: side.to_json() for name, side in sides.items()}}
    (arguments.out / "ppo.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (arguments.out / "ppo.md").write_text(f"{report}\n", encoding="utf-8")
    print(report)


def run_in_turn(bench: Bench, workloads: list[Workload], *, repeats: int, threads: int) -> dict[str, Side]:
    """Return each workload's counted steps, after one that is not compared and one to warm up."""
    sides = {workload.name: Side() for workload in workloads}
    workers: dict[str, Worker] = {}
    try:
        for workload in workloads:
            workers[workload.name] = Worker(bench.task("ours", workload, PeerSettings()), threads)
            workers[workload.name].ready()
        for index in range(2 + repeats):
            for name, worker in workers.items():
                sides[name].steps.append(worker.step())
                if index >= 2:
                    sides[name].seconds.append(sides[name].steps[-1]["seconds"])
        for name, worker in workers.items():
            sides[name].peak_bytes = worker.stop()
    finally:
        for worker in workers.values():
            worker.__exit__()
    return sides


def rows_of(sides: dict[str, Side]) -> list[tuple[str, ...]]:
    """Return the table's rows; time and memory stand beside the first workload's."""
    first = next(iter(sides.values()))
    return [
        (
            name,
            f"{side.median:.2f} s ± {spread(side.seconds) / 2:.0%}",
            f"{60 / side.median:.1f}",
            f"x {side.median / first.median:.2f}",
            f"{side.peak_bytes / 1e9:.2f} GB",
            f"x {side.peak_bytes / first.peak_bytes:.2f}",
        )
        for name, side in sides.items()
    ]


if __name__ == "__main__":
    main()

"""Time of the built-in rewards: `python -m benchmarks.rewards`.

Each is called on the same made-up solutions, as a stage calls it: 1,000 in one call, median of several calls, in one
thread; the worker's line is the hybrid reward behind a process of its own.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from posttrain.rewards.functions import built_in_rewards
from posttrain.rewards.grades import grade_once
from posttrain.rewards.workers import WorkerReward
from posttrain.settings import RewardOptions, RewardWorkerSettings

OPTIONS = {"format_regex": {"pattern": ".*####.*"}, "contains": {"phrases": ["sure"]}, "avoids": {"phrases": ["sorry"]}}
LINE = "Step {n}: there are {n} boxes of {m} pens each, so {n} * {m} = {product}. Therefore we add them to the rest.\n"
USER_FILE = "from posttrain.rewards.hybrid import hybrid as built_in\n\ndef mine(prompts, completions, **columns):\n"


def solutions(count: int) -> dict[str, list[Any]]:
    """Return the arguments of a reward function: solutions of 1 to 12 lines; some right, some boxed, some cut off."""
    completions, golds = [], []
    for index in range(count):
        lines = [LINE.format(n=n, m=index % 17, product=n * (index % 17)) for n in range(1, 2 + index % 12)]
        ending = (rf"The answer is \boxed{{{index:,}}}.", f"#### ${index:,}", f"#### {index + 1}", "The answer is")
        completions.append("".join(lines) + ending[index % 4])
        golds.append(f"They have {index}.\n#### {index:,}")
    return {
        "prompts": ["How many?"] * count,
        "completions": completions,
        "answer": golds,
        "completion_ids": [[7] * (len(text) // 4) for text in completions],
        "truncated": [index % 4 == 3 for index in range(count)],
        "prompt_id": [str(index // 8) for index in range(count)],
    }


def milliseconds(function: Callable[..., Any], arguments: dict[str, list[Any]], repeats: int) -> tuple[float, float]:
    """Return the median and the slowest time of one completion."""
    seconds = []
    for _ in range(repeats):
        grade_once.cache_clear()  # each call grades for itself
        started = time.perf_counter()
        function(**arguments)
        seconds.append(time.perf_counter() - started)
    each = [1000 * value / len(arguments["completions"]) for value in seconds]
    return statistics.median(each), max(each)


def main() -> None:
    """Print a line for each reward, slowest first."""
    parser = argparse.ArgumentParser(prog="benchmarks.rewards", description=__doc__)
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    arguments = solutions(asked.completions)
    functions = built_in_rewards(RewardOptions.model_validate(OPTIONS), max_completion_length=512)
    found = {name: milliseconds(function, arguments, asked.repeats) for name, function in functions.items()}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mine.py")
        path.write_text(f"{USER_FILE}    return built_in(prompts, completions, **columns)\n")
        with WorkerReward("mine", str(path), RewardWorkerSettings()) as worker:
            found["hybrid in a process"] = milliseconds(worker, arguments, asked.repeats)
    characters = statistics.fmean(map(len, arguments["completions"]))
    machine = describe_machine(1)
    if asked.json:
        print(json.dumps({"processor": machine["processor"], "characters": characters, "milliseconds": found}))
        return
    print(f"{machine['processor']}: {asked.completions} completions of {characters:.0f} characters on average")
    for name, (median, slowest) in sorted(found.items(), key=lambda item: -item[1][0]):
        print(f"  {name:22} {median:.4f} ms a completion, at most {slowest:.4f}")


if __name__ == "__main__":
    main()

"""Measure the mathematics grader beside math-verify in one process: `python -m benchmarks.grading`.

Equal rewrites and changed values of the MATH-500 answers, GSM8K's solutions, the project's own cases, and hostile
texts; agreement, wrong verdicts, and time for each. math-verify is optional (the extra `graders`): without it, its
rows are missing.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.hostile import HOSTILE, TALKATIVE
from benchmarks.rewrites import others, rewrites
from posttrain.rewards.math_answers import GRADER_VERSION, Verdict, grade, grade_answer

HERE = Path(__file__).parent
CASES = HERE.parent / "tests" / "rewards" / "grading_cases.tsv"
UNUSUAL = ("display", "period in dollars")  # no response has these in a box
HOSTILE_GOLDS = ("42", "3\\sqrt{13}", "x^2+1", "(1,2)", "\\sin x")


class Pair(NamedTuple):
    """A response with its gold, and whether it is right."""

    gold: str
    response: str
    right: bool
    profile: Any


Grader = Callable[[Pair], bool]


def main() -> None:
    """Measure, and write both files."""
    arguments = parse()
    if arguments.hostile:
        print(json.dumps(hostile()))
        return
    sets = pair_sets(arguments.data)
    graders: dict[str, Grader] = {"posttrain": ours}
    if importlib.util.find_spec("math_verify") is not None:
        graders["math-verify"] = math_verify_grader()
    results: dict[str, Any] = {"machine": machine(graders), "command": "python -m benchmarks.grading", "sets": {}}
    for name, pairs in sets.items():
        verdicts = {grader: measure(graders[grader], pairs) for grader in graders}
        results["sets"][name] = {grader: summary(pairs, *found) for grader, found in verdicts.items()}
        if len(verdicts) == 2:
            first, second = (found[0] for found in verdicts.values())
            results["sets"][name]["agreement"] = sum(map(lambda a, b: a == b, first, second)) / len(pairs)
        print(name, json.dumps(results["sets"][name]), flush=True)
    done = subprocess.run([sys.executable, "-m", "benchmarks.grading", "--hostile"], capture_output=True, check=True)
    results["hostile"] = json.loads(done.stdout)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "grading.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "GRADING.md").write_text(report(results), encoding="utf-8")
    print(report(results))


def parse() -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.grading", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="directory of math500/ and gsm8k/")
    parser.add_argument("--out", type=Path, default=HERE, help="where grading.json and GRADING.md are written")
    parser.add_argument("--hostile", action="store_true", help="measure the hostile texts alone, and print JSON")
    return parser.parse_args()


def pair_sets(data: Path) -> dict[str, list[Pair]]:
    """Return the pairs to grade by the name of their set; sets whose data are not there are left out."""
    sets: dict[str, list[Pair]] = {}
    math500, gsm8k = data / "math500" / "test.jsonl", data / "gsm8k" / "test.jsonl"
    if math500.is_file():
        golds = [row["answer"] for row in records(math500)]
        sets["MATH-500, equal rewrites"] = [
            Pair(gold, boxed(text), True, "boxed")
            for gold in golds
            for kind, text in rewrites(gold)
            if kind not in UNUSUAL
        ]
        sets["MATH-500, other values"] = [
            Pair(gold, boxed(text), False, "boxed") for gold in golds for _, text in others(gold)
        ]
    if gsm8k.is_file():
        solutions = [row["answer"] for row in records(gsm8k)]
        sets["GSM8K, solutions"] = [Pair(last_line(each), each, True, "gsm8k") for each in solutions]
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    sets["own cases"] = [
        Pair(gold, boxed(answer), verdict == "right", "boxed") for verdict, _, gold, answer in rows if answer.strip()
    ]
    return sets


def records(file: Path) -> list[dict[str, str]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def last_line(solution: str) -> str:
    """Return the answer of a GSM8K solution."""
    return solution.rpartition("####")[2].strip()


def boxed(answer: str) -> str:
    """Return a response with the answer in a box, once."""
    return answer if "\\boxed" in answer else rf"The answer is $\boxed{{{answer.strip().strip('$')}}}$."


def ours(pair: Pair) -> bool:
    """Grade by this project."""
    return grade(pair.response, pair.gold, profile=pair.profile).verdict is Verdict.RIGHT


def math_verify_grader() -> Grader:
    """Return math-verify with its defaults: its own extraction, its timeouts of five seconds."""
    import logging

    from math_verify import parse as read
    from math_verify import verify

    logging.disable(logging.CRITICAL)

    def judge(pair: Pair) -> bool:
        return bool(verify(read(f"${pair.gold}$"), read(pair.response)))

    return judge


def measure(grader: Grader, pairs: Sequence[Pair]) -> tuple[list[bool], list[float]]:
    """Return verdicts and seconds of each pair; what raises is not right."""
    verdicts, seconds = [], []
    for pair in pairs:
        started = time.perf_counter()
        try:
            right = grader(pair)
        except Exception:
            right = False
        seconds.append(time.perf_counter() - started)
        verdicts.append(right)
    return verdicts, seconds


def summary(pairs: Sequence[Pair], verdicts: Sequence[bool], seconds: Sequence[float]) -> dict[str, float]:
    """Return how many verdicts are wrong and how the times are spread, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "pairs": len(pairs),
        "missed": sum(pair.right and not found for pair, found in zip(pairs, verdicts, strict=True)),
        "wrongly_accepted": sum(found and not pair.right for pair, found in zip(pairs, verdicts, strict=True)),
        "median_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "max_ms": 1000 * ordered[-1],
        "per_second": len(seconds) / sum(seconds),
    }


def hostile() -> dict[str, float]:
    """Return the worst seconds of a hostile text against any gold, and the peak memory of all."""
    started = time.perf_counter()
    grade_answer("\\Gamma(1/2)", "\\sqrt{\\pi}")
    cold = time.perf_counter() - started
    worst = {name: max(map(seconds_of, (text,) * len(HOSTILE_GOLDS), HOSTILE_GOLDS)) for name, text in both().items()}
    own = max((worst[name], name) for name in HOSTILE)
    symbolic = max((worst[name], name) for name in TALKATIVE)
    return {
        "texts": len(worst),
        "worst_seconds": own[0],
        "worst_symbolic_seconds": symbolic[0],
        "first_symbolic_seconds": cold,
        "peak_mb": peak_megabytes(),
        "could_not_grade": sum(grade_answer(text, "42").verdict is Verdict.COULD_NOT_GRADE for text in both().values()),
        "accepted": sum(grade_answer(text, "42").verdict is Verdict.RIGHT for text in both().values()),
    }


def peak_megabytes() -> float:
    """Return the largest resident size of this process; `ru_maxrss` would count the parent's before the exec."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def both() -> Mapping[str, str]:
    """Return every hostile text."""
    return {**HOSTILE, **TALKATIVE}


def seconds_of(text: str, gold: str) -> float:
    """Return the seconds of one hostile text."""
    started = time.perf_counter()
    grade(f"</think> <answer>{text}</answer>", gold)
    return time.perf_counter() - started


def machine(graders: Mapping[str, Grader]) -> dict[str, Any]:
    """Return what measured: processor, cores, versions."""
    from benchmarks.machine import processor

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "grader_version": GRADER_VERSION,
        "sympy": version("sympy"),
        "math-verify": version("math-verify") if "math-verify" in graders else None,
    }


def report(results: Mapping[str, Any]) -> str:
    """Return the results in Markdown."""
    of, hostile_texts = results["machine"], results["hostile"]
    lines = [
        "# The mathematics grader, measured",
        "",
        f"`{results['command']}`, one process, one core: {of['processor']}, {of['cores']} cores, load "
        f"{of['load']:.1f} at the start, Python {of['python']}, grader version {of['grader_version']}, sympy "
        f"{of['sympy']}, math-verify {of['math-verify'] or 'not installed'} with its defaults.",
        "",
        "| set | grader | pairs | missed | wrongly accepted | median ms | p99 ms | max ms | a second | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["sets"].items():
        for grader in ("posttrain", "math-verify"):
            if grader in row:
                lines.append(table_line(name, grader, row[grader], row.get("agreement")))
    lines += [
        "",
        f"Hostile texts, {hostile_texts['texts']} against {len(HOSTILE_GOLDS)} golds each: "
        f"{hostile_texts['accepted']} accepted, {hostile_texts['could_not_grade']} given up on, none raised; "
        f"at worst {hostile_texts['worst_seconds']:.3f} s in our own code and "
        f"{hostile_texts['worst_symbolic_seconds']:.3f} s in the symbolic child; {hostile_texts['peak_mb']:.0f} MB, "
        "and at most 256 MB in the child. "
        f"The first question to the symbolic child starts it, {hostile_texts['first_symbolic_seconds']:.1f} s.",
        "",
        "Rewrites and other values are made by `benchmarks/rewrites.py`, the own cases are "
        "`tests/rewards/grading_cases.tsv`: graders that are not ours were not tuned on them. "
        "Two rewrites make most of what math-verify 0.9.0 misses: a period inside the box and 9e0 for 9.",
        "",
    ]
    return "\n".join(lines)


def table_line(name: str, grader: str, row: Mapping[str, float], agreement: float | None) -> str:
    """Return one row of the table."""
    times = f"{row['median_ms']:.2f} | {row['p99_ms']:.1f} | {row['max_ms']:.0f} | {row['per_second']:.0f}"
    agreed = "" if agreement is None else f"{100 * agreement:.1f}%"
    return f"| {name} | {grader} | {row['pairs']} | {row['missed']} | {row['wrongly_accepted']} | {times} | {agreed} |"


if __name__ == "__main__":
    main()

"""A long fuzzing campaign of the grader: `make fuzz`, or `python -m tests.rewards.fuzz_grader --seconds 600`.

Not collected by pytest, which runs the short properties of `test_math_answers.py`. Mutates the project's own cases and
hostile texts, guided by coverage where atheris is installed, else at random from a seed. The first text that breaks a
property is printed and ends it with an error.
"""

import argparse
import importlib.util
import random
import re
import sys
import time
from pathlib import Path

from benchmarks.hostile import HOSTILE

PIECES = re.findall(
    r"\S+",
    r"\frac { } ( ) [ ] \{ \} | , ; : + - * / ^ _ = < > \le \ne \approx \in \cup \cap \setminus \pm \mp ! % ' \circ ° "
    r"\sqrt \sin \cos \ln \log \exp \arctan \binom \overline \vec \text{ \mathrm{ \boxed{ \begin{pmatrix} "
    r"\end{pmatrix} & \\ \left \right \sum_{k=1}^{n} \prod_{k=1}^{3} \int_0^1 dx \lim_{x\to0} \infty \pi "
    r"\alpha x y i e f(x) 0 1 2 10 42 1,000 .5 1e9 9^9 $ \$ and or cm million not C ½ ² √ "
    r"</think> <answer> </answer> #### \, \!",
)
CASES = Path(__file__).with_name("grading_cases.tsv")
SLOWEST_SECONDS = 5.0  # of CPU, for six grades under instrumentation


def check(text: str, gold: str) -> None:
    """Raise AssertionError where a property of the grader does not hold for a text and a gold."""
    from posttrain.rewards.math_answers import Verdict, gold_error, grade, grade_answer

    started = time.process_time()
    there, back = grade_answer(text, gold), grade_answer(gold, text)
    itself = grade_answer(f" {text} ", text)
    for profile in ("r1_zero", "boxed", "lenient"):
        found = grade(text, gold, profile=profile)  # type: ignore[arg-type]
        assert found.span is None or 0 <= found.span[0] <= found.span[1] <= len(text), "a span outside the response"
    assert time.process_time() - started < SLOWEST_SECONDS, "too slow"
    again = grade_answer(text, gold)
    assert again == there, f"another verdict the second time: {there.reason}, {again.reason}"
    if gold_error(text) is None and "####" not in text and "box" not in text:
        assert itself.verdict is Verdict.RIGHT, "not equal to itself"
    one_sided = ("%", ".", "percent", "million", "cm", "#", "box", "C")  # decimals and percentages are not symmetric
    if not any(mark in text + gold for mark in one_sided):
        rights = [found.verdict is Verdict.RIGHT for found in (there, back)]
        assert rights[0] == rights[1] or Verdict.COULD_NOT_GRADE in (there.verdict, back.verdict), "not symmetric"


def checked(text: str, gold: str) -> None:
    """Check, and print what breaks a property."""
    try:
        check(text, gold)
    except BaseException:
        print(f"text {text!r}\ngold {gold!r}", file=sys.stderr)
        raise


def mutated(seeds: list[str], random_source: random.Random) -> str:
    """Return a text made of a seed by a few insertions, deletions and swaps, or of pieces alone."""
    if random_source.random() < 0.3:
        return random_source.choice(["", " "]).join(random_source.choices(PIECES, k=random_source.randint(1, 14)))
    text = random_source.choice(seeds)[:300]
    for _ in range(random_source.randint(1, 4)):
        at = random_source.randint(0, len(text))
        kind = random_source.random()
        if kind < 0.5:
            text = text[:at] + random_source.choice(PIECES) + text[at:]
        elif kind < 0.8:
            text = text[:at] + text[at + random_source.randint(1, 6) :]
        else:
            other = random_source.choice(seeds)
            text = text[:at] + other[random_source.randint(0, len(other)) :][:40]
    return text


def at_random(seeds: list[str], seconds: float, seed: int) -> int:
    """Check mutations until the time is over; returns how many."""
    random_source = random.Random(seed)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        text, gold = mutated(seeds, random_source), random_source.choice(seeds)
        gold = mutated(seeds, random_source) if random_source.random() < 0.3 else gold
        checked(text, gold)
        count += 1
    return count


def by_coverage(seconds: float) -> None:
    """Let atheris choose the texts; it ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["posttrain.rewards"]):
        import posttrain.rewards.math_answers

    def once(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        pieces = [
            provider.PickValueInList(PIECES) if provider.ConsumeBool() else provider.ConsumeUnicode(2)
            for _ in range(provider.ConsumeIntInRange(1, 24))
        ]
        at = provider.ConsumeIntInRange(0, len(pieces))
        checked("".join(pieces[:at]), "".join(pieces[at:]))

    assert posttrain.rewards.math_answers
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=400"], once)
    atheris.Fuzz()


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(prog="fuzz_grader", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="without atheris, even where it is installed")
    arguments = parser.parse_args()
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    seeds = [text for row in rows for text in row[2:]] + [text[:200] for text in HOSTILE.values()]
    if importlib.util.find_spec("atheris") is not None and not arguments.random:
        by_coverage(arguments.seconds)
    print(f"{at_random(seeds, arguments.seconds, arguments.seed)} texts, no property broken")


if __name__ == "__main__":
    main()

"""Answers graded from the command line, and the stored completions of a run graded again.

Floor 6: reads files and run directories, changes nothing. The texts are a model's: what is shown of them is quoted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.data.files import Malformed, read_file
from posttrain.errors import DataError
from posttrain.evals.evaluate import SAMPLES_FILE, SUMMARY_FILE
from posttrain.records import StopReason
from posttrain.rewards.arguments import GOLD_COLUMNS, completion_text
from posttrain.rewards.extraction import Profile
from posttrain.rewards.grades import FORMS
from posttrain.rewards.math_answers import GRADER_VERSION, LENIENT, Grade, Verdict, gold_error, grade, grade_answer
from posttrain.runs.rollout_files import read_rollouts

RESPONSE_COLUMNS = ("response", "completion", "prediction")
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Graded:
    """A response or a bare answer with its gold and its grade."""

    place: str
    text: str
    gold: str
    grade: Grade


@dataclass(frozen=True, slots=True)
class Regraded:
    """A stored completion: `before` is the score it was trained or reported with, `grade` what it gets now."""

    place: str
    reward: str  # r1_zero, strict, ...
    before: float | None
    gold: str
    grade: Grade

    @property
    def after(self) -> float | None:
        """The score now; None where the gold is unusable."""
        return None if gold_error(self.gold) else float(self.grade.verdict is Verdict.RIGHT)


def graded_pair(text: str, gold: str, profile: Profile | None) -> Graded:
    """Grade one text, a bare answer where no profile says how to find the answer in it."""
    found = grade_answer(text, gold) if profile is None else grade(text, gold, profile=profile, policy=LENIENT)
    return Graded("typed", text, gold, found)


def graded_file(path: Path, profile: Profile | None) -> list[Graded]:
    """Grade the rows of a file with a response and a gold answer; raises DataError for one without them."""
    found = []
    for place, record in read_file(path):
        if isinstance(record, Malformed):
            raise DataError(f"{place}: {record.fault} {record.detail}".rstrip())
        text = next((record[name] for name in RESPONSE_COLUMNS if record.get(name) is not None), None)
        gold = next((record[name] for name in GOLD_COLUMNS if record.get(name) is not None), None)
        if text is None or gold is None:
            raise DataError(
                f"{place}: expected a column {' or '.join(RESPONSE_COLUMNS)} and a column {' or '.join(GOLD_COLUMNS)}, "
                f"found {', '.join(record) or 'none'}"
            )
        each = graded_pair(text if isinstance(text, str) else completion_text(text), str(gold), profile)
        found.append(Graded(str(place), each.text, each.gold, each.grade))
    return found


def grade_lines(graded: Sequence[Graded]) -> Iterator[str]:
    """Yield grades as lines to print: the verdict, why, and what both sides were read as."""
    for each in graded:
        found = each.grade
        where = f" by {found.rule} at {found.span[0]}-{found.span[1]}" if found.rule and found.span else ""
        yield f"{found.verdict:15}  {each.place}: {found.reason}"
        yield f"  answer  {quoted(found.extracted)}{where}, read as {quoted(found.answer_form)}"
        yield f"  gold    {quoted(each.gold)}, read as {quoted(found.gold_form)}"
    if len(graded) > 1:
        verdicts = Counter(each.grade.verdict for each in graded)
        yield f"{len(graded)} graded: " + ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict)


def as_content(graded: Graded) -> dict[str, Any]:
    """Return a grade for a program."""
    return {"place": graded.place, "gold": graded.gold, **asdict(graded.grade)}


def rescore(directory: Path) -> list[Regraded]:
    """Grade the stored completions of a stage, or of every stage of a run, again."""
    stages = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())] if directory.is_dir() else []
    found = [each for stage in stages for each in _stored(stage)]
    if not found:
        raise DataError(
            f"{directory} has no graded completions: expected a run, a stage with a reward of "
            f"{', '.join(FORMS)}, or an evaluation"
        )
    return found


def flips(regraded: Sequence[Regraded]) -> list[Regraded]:
    """Return what gets another score now than it had."""
    return [each for each in regraded if each.before != each.after]


def rescore_report(directory: Path, regraded: Sequence[Regraded]) -> dict[str, Any]:
    """Return counts of each reward, before and now, and the flips, as plain JSON."""
    rewards = {}
    for name in dict.fromkeys(each.reward for each in regraded):
        of_name = [each for each in regraded if each.reward == name]
        rewards[name] = {
            "completions": len(of_name),
            "right_before": sum(each.before == 1 for each in of_name),
            "right_now": sum(each.after == 1 for each in of_name),
            "could_not_grade": sum(each.grade.verdict is Verdict.COULD_NOT_GRADE for each in of_name),
            "flips": len(flips(of_name)),
        }
    changed = [
        {"place": each.place, "reward": each.reward, "before": each.before, "after": each.after, "gold": each.gold}
        | asdict(each.grade)
        for each in flips(regraded)
    ]
    return {"run": str(directory), "grader_version": GRADER_VERSION, "rewards": rewards, "flips": changed}


def rescore_lines(report: Mapping[str, Any], *, shown: int) -> Iterator[str]:
    """Yield a report as lines to print, with the first flips."""
    yield f"{report['run']}, graded again by version {report['grader_version']}"
    for name, counts in report["rewards"].items():
        yield (
            f"  {name}: {counts['completions']} completions, {counts['right_before']} right before, "
            f"{counts['right_now']} now, {counts['flips']} flips, {counts['could_not_grade']} could not be graded"
        )
    for flip in report["flips"][:shown]:
        yield (
            f"  {flip['place']} {flip['reward']}: {flip['before']} -> {flip['after']}, {quoted(flip['extracted'])} "
            f"for {quoted(flip['gold'])}: {flip['reason']}"
        )
    if len(report["flips"]) > shown:
        yield f"  and {len(report['flips']) - shown} more: --shown {len(report['flips'])}"


def quoted(text: str | None) -> str:
    """Return the end of a text, marked off; nothing in it can reach the terminal as a command."""
    if text is None:
        return "nothing"
    text = "".join(character if character.isprintable() else " " for character in text.strip())
    return f"`{text if len(text) <= SHOWN_CHARACTERS else '...' + text[3 - SHOWN_CHARACTERS :]}`"


def _stored(stage: Path) -> Iterator[Regraded]:
    samples = stage / "artifact" / SAMPLES_FILE
    if samples.is_file():
        summary = json.loads((stage / "artifact" / SUMMARY_FILE).read_text(encoding="utf-8"))
        if summary["strict_profile"] is not None:  # else nothing was graded
            yield from _samples(samples, summary["strict_profile"])
        return
    for file in sorted((stage / "rollouts").glob("step-*.parquet")):
        yield from _rollouts(file)


def _samples(file: Path, profile: Profile) -> Iterator[Regraded]:
    for number, row in enumerate(read_rollouts(file), start=1):
        place, truncated = f"{file}:row {number}", row["stop_reason"] == StopReason.LENGTH
        strict = grade(row["completion"], row["gold"], profile=profile, truncated=truncated)
        lenient = grade(row["completion"], row["gold"], profile="lenient", truncated=truncated, policy=LENIENT)
        either = strict if strict.verdict is Verdict.RIGHT else lenient  # as an evaluation counts it
        for name, found in (("strict", strict), ("lenient", either)):
            before = None if row[name] is None else float(row[name])
            yield Regraded(place, name, before, row["gold"], found)


def _rollouts(file: Path) -> Iterator[Regraded]:
    for number, row in enumerate(read_rollouts(file), start=1):
        names = [name for name in FORMS if f"rewards/{name}" in row]
        if names and "gold" not in row:
            raise DataError(f"{file} has no column gold: its run is older than this way of grading again")
        for name in names:
            if row["gold"] is None:
                continue
            truncated = row["stop_reason"] == StopReason.LENGTH
            found = grade(row["completion"], row["gold"], profile=FORMS[name], truncated=truncated, policy=LENIENT)
            yield Regraded(f"{file}:row {number}", name, row[f"rewards/{name}"], row["gold"], found)

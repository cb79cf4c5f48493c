"""The health of a run in words: what its metrics and rollouts say is going wrong, by checks with names.

Floor 5: pure functions of the rows of metrics.jsonl so far and the present step's rollouts, for every stage that
samples. They say what is the case, with its numbers; such signals audit a run, and none is known to warn early.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from posttrain.runs.directory import StageRun
from posttrain.runs.findings import Finding
from posttrain.settings import GrpoSettings, PolicyStageSettings
from posttrain.stages.course import LONG, NOW, Course, Row, duplicates, flat_groups, groups_of, places

FLAT_SHARE = 0.9  # of groups without a difference in reward
CUT_SHARE = 0.25  # of completions that reach the token limit
KL_A_TOKEN = 0.5  # nats between policy and reference
ENTROPY_LEFT = 0.1  # share of the first steps' entropy
REPEATED_SHARE = 0.5  # of completions that another one of their prompt equals
SOLVED = 0.9  # mean of what is graded from which on completions may well be alike
GROWTH = 1.5  # of the mean length
DOMINANCE = 0.9  # share of one part in the variance of the reward
STILL_VARIES = 0.5  # of a part's spread in the first steps: less, and it has had its say
RELEASE = 0.8  # a finding ends at this share of the threshold at which it began, so that it does not flicker

LOSS_NOTE = (
    "note: a loss near 0 is normal here: on fresh samples the advantages of a group cancel, their gradients do not. "
    "Watch reward, completions and health"
)


def watch_health(settings: PolicyStageSettings, run: StageRun) -> None:
    """Let a run look at its health after each step."""
    run.watch(partial(look, settings))
    if isinstance(settings, GrpoSettings) and settings.num_iterations == 1 and run.checkpoint is None:
        run.event("note", LOSS_NOTE)


def look(settings: PolicyStageSettings, rows: Sequence[Row], rollouts: Sequence[Row]) -> list[Finding]:
    """Return what is wrong at the last of the rows, the worst first."""
    course = Course(settings, rows, rollouts)
    return [finding for name, check in CHECKS.items() if (finding := check(course, name)) is not None]


def no_signal(course: Course, name: str) -> Finding | None:
    """The completions of nearly every prompt have the same reward: nothing to learn from their differences.

    Without groups to compare (PPO has a critic for that) those of the whole step have.
    """
    grouped = "frac_reward_zero_std" in course.rows[-1]
    share = course.now("frac_reward_zero_std") if grouped else float((course.values("reward_std")[-NOW:] == 0).mean())
    if len(course.rows) < NOW or not over(share, FLAT_SHARE, held=course.holds(name)):
        return None
    flat = [row for group in flat_groups(course.rollouts) for row in group] if grouped else list(course.rollouts)
    text = f"equal rewards in {share:.0%} of the {'groups' if grouped else 'batches'} of the last {NOW} steps"
    text += ", so that nothing tells better from worse"
    failed, solved = (course.rows[-1].get(f"groups/{kind}") for kind in ("failed", "solved"))
    if failed is not None and solved is not None:
        text += f"; of this step's {len(groups_of(course.rollouts))} groups {failed} failed and {solved} are solved"
    unanswered = [row for row in flat if row.get("answered") is False]
    if unanswered:
        text += f", and {len(unanswered)} completions in them have no answer in the form asked for"
    if 2 * len(unanswered) > len(flat):
        return Finding(name, text, "posttrain sft first, to teach the form", "--where no_answer", places(unanswered))
    if (solved or 0) > (failed or 0):
        return Finding(name, text, "harder prompts; or end here, these are learned", "--best 5", places(flat))
    advice = f"easier prompts, or --num_generations {2 * course.settings.num_generations}"
    return Finding(name, text, advice, "--worst 5", places(flat))


def kl_blow_up(course: Course, name: str) -> Finding | None:
    """The policy has left its reference so far that the reference says nothing of it any more."""
    metric = next((metric for metric in ("kl/token", "kl") if metric in course.rows[-1]), None)
    if metric is None or not over(kl := course.now(metric), KL_A_TOKEN, held=course.holds(name)):
        return None
    before = course.first(metric, LONG)
    text = f"{kl:.2f} nats a token between policy and reference, the mean of the last {NOW} steps"
    if len(course.rows) > LONG + NOW:
        text += f"; {before:.2f} in the first {LONG}"
    coefficient = 2 * (course.settings.kl_coef or 0.05)
    advice = f"--kl_coef {coefficient:g}, or --learning_rate {course.settings.learning_rate / 2:g}"
    return Finding(name, text, advice, "--best 5", places(course.by_reward()))


def proxy_gold_split(course: Course, name: str) -> Finding | None:
    """The reward goes on rising, and the score that says the truth falls, or stays behind it."""
    gold = course.gold
    if gold is None:
        return None
    split = course.split(course.proxy(), gold, proxy_spread=course.proxy_spread(), check=name)
    if split is None:
        return None
    text = (
        f"reward and {gold} parted after step {split.at}: reward went from {split.proxy[0]:.3g} to "
        f"{split.proxy[1]:.3g}, {gold} from {split.gold[0]:.3g} to {split.gold[1]:.3g}"
    )
    best = [row for row in course.by_reward() if row[f"rewards/{gold}"] is not None]
    best = best[: max(1, len(course.rollouts) // 4)]
    if best:
        mean = fmean(row[f"rewards/{gold}"] for row in best)
        text += f"; the {len(best)} best paid of this step's {len(course.rollouts)} completions have {gold} {mean:.3g}"
    coefficient = 2 * (course.settings.kl_coef or 0.05)
    advice = f"end near step {split.at}, or --kl_coef {coefficient:g}, or a reward that sees what {gold} sees"
    return Finding(name, text, advice, "--best 5", places(sorted(best, key=lambda row: row[f"rewards/{gold}"])))


def entropy_collapse(course: Course, name: str) -> Finding | None:
    """The policy says nearly the same each time, though it is not right nearly each time."""
    first, now = course.first("entropy"), course.now("entropy", LONG)
    fell = over(first * ENTROPY_LEFT, now, held=course.holds(name))
    again = duplicates(course.rollouts)
    repeats = over(len(again) / max(len(course.rollouts), 1), REPEATED_SHARE, held=course.holds(name))
    solved = course.graded is not None and course.now(f"rewards/{course.graded}/mean") >= SOLVED
    if len(course.rows) < 2 * LONG or not fell or not repeats or solved:
        return None
    text = (
        f"entropy fell from {first:.2g} to {now:.2g} nats a token since the first {LONG} steps; {len(again)} of this "
        f"step's {len(course.rollouts)} completions repeat another of their prompt"
    )
    advice = f"--learning_rate {course.settings.learning_rate / 2:g}, or --epsilon_high 0.28"
    return Finding(name, text, advice, "--where repeated", places(again))


def truncation(course: Course, name: str) -> Finding | None:
    """Many completions reach the token limit, before their answer or after it."""
    share = course.now("completions/clipped_ratio")
    if not over(share, CUT_SHARE, held=course.holds(name)):
        return None
    limit = course.settings.sampling.max_completion_length
    cut = [row for row in course.rollouts if row["stop_reason"] == "length"]
    text = f"{share:.0%} of the completions of the last {NOW} steps were cut off at {limit} tokens"
    if unanswered := [row for row in cut if row.get("answered") is False]:
        text += f", {len(unanswered)} of this step's {len(cut)} before they gave an answer"
    if len(cut) < len(course.rollouts):
        text += f"; those that ended have {course.rows[-1]['completions/mean_terminated_length']:.0f} on average"
    advice = f"--sampling.max_completion_length {2 * limit}, or shorter demonstrations before this stage"
    return Finding(name, text, advice, "--where truncated", places(unanswered or cut))


def format_only(course: Course, name: str) -> Finding | None:
    """Completions learn to give an answer in the form asked for, and not to give the right one."""
    answered = course.values("completions/answered_ratio")
    if course.graded is None or len(answered) < LONG:
        return None
    share = float(answered[:LONG].mean())
    split = course.split(answered, course.graded, proxy_spread=(share * (1 - share)) ** 0.5, check=name)
    if split is None or split.proxy[1] - split.proxy[0] < 0.1:
        return None
    text = (
        f"completions with an answer in the form asked for went from {split.proxy[0]:.0%} to {split.proxy[1]:.0%} "
        f"since step {split.at}, {course.graded} from {split.gold[0]:.3g} to {split.gold[1]:.3g}"
    )
    wrong = [row for row in course.rollouts if row.get("answered") and row[f"rewards/{course.graded}"] == 0]
    advice = "easier prompts, or posttrain sft on worked solutions; a weight on the form alone can go"
    return Finding(name, text, advice, "--where wrong", places(wrong))


def length_creep(course: Course, name: str) -> Finding | None:
    """Completions grow much longer, and nothing that is graded grows with them."""
    metric = "completions/mean_length"
    first, now = course.first(metric), course.now(metric, LONG)
    if len(course.rows) < 2 * LONG or not over(now / max(first, 1.0) - 1, GROWTH - 1, held=course.holds(name)):
        return None
    text = f"completions grew from {first:.0f} to {now:.0f} tokens"
    if course.graded is not None:
        if course.rose(f"rewards/{course.graded}/mean"):
            return None
        graded = f"rewards/{course.graded}/mean"
        text += f", {course.graded} went from {course.first(graded):.3g} to {course.now(graded, LONG):.3g}"
    if (longer := course.longer_is_better()) is not None:
        text += f"; of two to one prompt the longer one has the higher reward in {longer:.0%} of this step's pairs"
    advice = f"a reward that does not pay for length; until then --sampling.max_completion_length {round(1.5 * first)}"
    longest = sorted(course.rollouts, key=lambda row: -row["length"])
    return Finding(name, text, advice, "--longest 5", places(longest))


def dominant_part(course: Course, name: str) -> Finding | None:
    """One part of the reward is nearly all of its variance, and drowns others that still differ."""
    weights = {part: abs(weight) for part, weight in course.settings.rewards.items() if weight}
    spread = {part: weights[part] * course.now(f"rewards/{part}/std", LONG) for part in weights}
    total = sum(value**2 for value in spread.values())
    if len(spread) < 2 or not total > 0 or course.settings.reward_combination == "normalized_sum":
        return None
    largest = max(spread, key=lambda part: spread[part])
    share = spread[largest] ** 2 / total
    if largest == course.graded or not over(share, DOMINANCE, held=course.holds(name), release=0.95):
        return None
    drowned = [
        part
        for part in spread
        if part != largest
        and course.now(f"rewards/{part}/std", LONG) >= STILL_VARIES * course.first(f"rewards/{part}/std") > 0
    ]
    if not drowned:
        return None
    part = max(drowned, key=lambda part: spread[part])
    text = f"{largest} makes {share:.0%} of the variance of the reward, the mean of {LONG} steps; {part} differs too"
    text += f" (its own deviation {spread[part] / weights[part]:.3g}) and hardly counts at the weight {weights[part]:g}"
    advice = f"--rewards.{part} {weights[part] * spread[largest] / spread[part]:.2g}, where both weigh the same"
    return Finding(name, text, advice, "--best 5", places(course.by_reward()))


Check = Callable[[Course, str], Finding | None]

CHECKS: dict[str, Check] = {  # the worst first
    "no-signal": no_signal,
    "kl-blow-up": kl_blow_up,
    "proxy-gold-split": proxy_gold_split,
    "entropy-collapse": entropy_collapse,
    "truncation": truncation,
    "format-only": format_only,
    "length-creep": length_creep,
    "dominant-part": dominant_part,
}


def over(value: float, threshold: float, *, held: bool, release: float = RELEASE) -> bool:
    """Return whether a value has reached its threshold, or a share of it where it had; NaN never has."""
    return value >= threshold * (release if held else 1.0)

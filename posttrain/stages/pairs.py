"""Preference pairs out of the completions that a run kept: of each prompt the best against the worst.

By their rewards in a GRPO stage, by their strict grades in an evaluation: pairs of the policy's own completions.

Floor 5: reads rollouts and writes one JSONL file, in the schema that rm and dpo read. The stage does it inside a
recipe, `posttrain data pairs` beside one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.evals.evaluate import SAMPLES_FILE
from posttrain.evals.samples import Category
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import PairsSettings

PAIRS_FILE = "train.jsonl"  # the one split of the artifact, a directory of rows


def pairs(settings: PairsSettings, run: StageRun) -> None:
    """Publish the pairs of the completions of the stage beside this one that the settings name; finish the run."""
    made, without = make_pairs(run.path.parent / settings.completions, min_gap=settings.min_gap)
    run.publish_artifact(lambda directory: write_pairs(directory / PAIRS_FILE, made))
    run.event("pairs", f"{len(made)} pairs; {without} groups of completions made none")
    run.finish({"pairs": len(made), "groups_without_pair": without})


def make_pairs(stage: Path, *, min_gap: float) -> tuple[list[dict[str, Any]], int]:
    """Return the pairs of the completions that lie in a stage's directory, and how many groups made none.

    `min_gap` is how much better the chosen completion's reward must be. Raises DataError where there are no
    completions or no pair.
    """
    groups = [best_and_worst(group, min_gap=min_gap) for group in _groups(_kept_completions(stage))]
    made = [pair for pair in groups if pair is not None]
    if not made:
        differ = f"differ by {min_gap:g}" if min_gap else "differ"
        raise DataError(f"{stage}: none of {len(groups)} groups has two completions whose rewards {differ}")
    return made, len(groups) - len(made)


def write_pairs(out: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Write pairs as JSONL, whole or not at all."""
    durable.make_directory(out.parent)
    durable.write_file(out, "".join(f"{json.dumps(pair, ensure_ascii=False)}\n" for pair in pairs).encode())


def best_and_worst(group: Sequence[Mapping[str, Any]], *, min_gap: float) -> dict[str, Any] | None:
    """Return the pair of a prompt's rollouts; None where no two rewards differ enough, or the texts are the same.

    Of completions with equal rewards the first stands, so that the result does not depend on how they are sorted.
    Those that could not be scored, or have no content, are left out.
    """
    scored = [row for row in group if row["reward"] is not None and row["completion"].strip()]
    if not scored:
        return None
    best, worst = max(scored, key=lambda row: row["reward"]), min(scored, key=lambda row: row["reward"])
    gap = best["reward"] - worst["reward"]
    if gap <= 0 or gap < min_gap or best["completion"].strip() == worst["completion"].strip():
        return None
    messages = best.get("messages")
    sides = {"chosen": best["completion"], "rejected": worst["completion"]}
    if messages is not None:
        sides = {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
    prompt = best["prompt"] if messages is None else json.loads(messages)
    rewards = {"reward_chosen": best["reward"], "reward_rejected": worst["reward"]}
    return {"prompt": prompt, **sides, **rewards, "step": best["step"], "prompt_id": best["prompt_id"]}


def _kept_completions(stage: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the completions of a stage with their rewards: rollouts, or an evaluation's samples, 1 where right."""
    samples, files = stage / "artifact" / SAMPLES_FILE, sorted((stage / "rollouts").glob("step-*.parquet"))
    if samples.is_file():
        for row in read_rollouts(samples):
            graded = row["category"] != Category.COULD_NOT_GRADE
            yield {**row, "prompt_id": row["problem_id"], "step": 0, "reward": float(row["strict"]) if graded else None}
    elif files:
        for file in files:
            yield from read_rollouts(file)
    else:
        raise DataError(
            f"{stage} has no completions: expected the directory of a GRPO or PPO stage, such as runs/demo/grpo, or "
            "of a finished evaluation with num_samples above 1"
        )


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the rollouts of one prompt at one step together; they lie so in a file."""
    for _, group in groupby(rows, key=lambda row: (row["step"], row["prompt_id"])):
        yield list(group)

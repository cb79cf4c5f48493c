"""The frontier of a training stage: its start and the policies that it kept, sampled on the same held-out prompts.

Floor 5: knows policies by their directories. Each policy is a step of the run, which resumes after the last one; what
the samples say of over-optimisation is `evals/frontier`'s to tell.
"""

from pathlib import Path

from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import Interrupted
from posttrain.evals.checks import check_judge_calls, check_settings
from posttrain.evals.evaluate import progress
from posttrain.evals.frontier import START, frontier, sentence
from posttrain.evals.sampled import model_answers, task_rewards
from posttrain.evals.samples import REWARDS
from posttrain.evals.tasks import ROW_KINDS, evaluated_task, find_task, task_data
from posttrain.rewards.math_answers import GRADER_VERSION
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.logs import plain
from posttrain.runs.policies import kept_policies
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import FrontierSettings

FRONTIER_FILE = "frontier.json"


def frontier_stage(settings: FrontierSettings, run: StageRun) -> None:
    """Sample the start and every kept policy, and publish frontier.json as the run's artifact.

    Two models are in memory: a policy and the start, or one where the policies are adapters on it.
    """
    check_settings(settings)
    data = task_data(find_task(settings.task), settings.data)
    task = evaluated_task(find_task(settings.task), data)
    settings = with_absolute_reward(settings.model_copy(update={"data": data}))
    policies = {START: settings.model.name_or_path}
    policies |= {step: str(path) for step, path in kept_policies(Path(settings.policies)).items()}
    rows = load_rows(data, seed=settings.seed, kinds=ROW_KINDS[task.kind])
    require_kind(rows, ROW_KINDS[task.kind], "frontier")
    check_judge_calls(settings, len(rows) * len(policies))
    with task_rewards(task, settings, rows, run) as functions:
        for step in run.steps(len(policies)):
            model = settings.model.model_copy(update={"name_or_path": list(policies.values())[step - 1]})
            with model_answers(model, settings.model, task, settings, rows, functions, run) as problems:
                try:
                    samples = problems.answer(problems.ids)
                except Interrupted:
                    run.save(step - 1, lambda: ({}, {}))
                    raise
            run.log(step, progress(samples), rollouts=[sample.row() for sample in samples])
            run.save(step, lambda: ({}, {}))
    files = [run.path / "rollouts" / f"step-{step:08d}.parquet" for step in range(1, len(policies) + 1)]
    gold = settings.gold or task.score
    found = {
        "task": task.name,
        "task_version": task.version,
        "grader_version": GRADER_VERSION,
        "policies": policies,
        "proxy": settings.rewards,
        "gold": gold or task.name,
        **frontier(
            dict(zip(policies, map(read_rollouts, files), strict=True)),
            gold="score" if gold is None else f"{REWARDS}{gold}",
        ),
        "seed": settings.seed,
    }

    def write(directory: Path) -> None:
        durable.write_json(directory / FRONTIER_FILE, plain(found))

    run.publish_artifact(write)
    run.event("frontier", sentence(found))
    run.finish(found)


def with_absolute_reward(settings: FrontierSettings) -> FrontierSettings:
    """Return the settings with a reward that is comparable between policies: one normalised in its group never is."""
    if settings.reward_combination != "normalized_sum":
        return settings
    return settings.model_copy(update={"reward_combination": "sum"})

"""The frontier of a policy stage: its start and the policies that it kept, sampled on the same held-out prompts.

Floor 5: knows policies by their directories. Each policy is a step of the run, which resumes after the last one; what
the samples say of over-optimisation is `evals/frontier`'s to tell.
"""

from dataclasses import replace
from pathlib import Path

from posttrain.data.chat import drop_overlong, render_prompt
from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import ENGINES, Interrupted
from posttrain.evals.checks import check_settings
from posttrain.evals.evaluate import SCORER_TOKENS, judge, progress, sample_seeds, scores_of
from posttrain.evals.frontier import START, frontier, sentence
from posttrain.evals.references import open_reference
from posttrain.evals.samples import REWARDS
from posttrain.evals.tasks import evaluated_task, find_task, strict_profile, task_data
from posttrain.models.lm import load_model, load_tokenizer
from posttrain.rewards import GOLD_REWARDS
from posttrain.rewards.math_answers import GRADER_VERSION
from posttrain.rewards.scoring import require_gold
from posttrain.rewards.stage_rewards import reward_functions
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
    settings = with_absolute_reward(settings)
    policies = {START: settings.model.name_or_path}
    policies |= {step: str(path) for step, path in kept_policies(Path(settings.policies)).items()}
    data = task_data(find_task(settings.task), settings.data)
    task = evaluated_task(find_task(settings.task), data)
    profile = (settings.strict_profile or strict_profile(data)) if task.kind == "mathematics" else None
    rows = load_rows(data, seed=settings.seed)
    require_kind(rows, ("prompt", "prompt_completion", "preference"), "frontier")
    rewards = scores_of(task, settings)
    if task.kind == "mathematics" or GOLD_REWARDS & rewards.keys():
        require_gold(rows)
    with reward_functions(settings, rows, run, max_tokens=SCORER_TOKENS, allow_weak=True) as functions:
        tokenizer = load_tokenizer(settings.model)
        rendered, dropped = drop_overlong(
            rows,
            lambda row: render_prompt(row, tokenizer),
            max_length=data.max_length,
            reserve=settings.sampling.max_completion_length,
        )
        prompts = list(rendered.values())
        for step in run.steps(len(policies)):
            model = settings.model.model_copy(update={"name_or_path": list(policies.values())[step - 1]})
            policy = load_model(model, seed=settings.seed, trainable=False)
            reference = open_reference(settings.model, policy, model)
            engine = ENGINES[settings.engine.name](policy, settings.engine, lambda: run.stop_requested)
            try:
                with run.phase("generate"):
                    completions = engine.generate(
                        prompts,
                        settings.sampling,
                        num_samples=settings.num_samples,
                        seeds=sample_seeds(settings, prompts),
                    )
                with run.phase("score"):
                    samples = list(judge(prompts, completions, task, settings, functions, profile))
                with run.phase("reference"):
                    distances = reference.distances(prompts, completions)
            except Interrupted:
                run.save(step - 1, lambda: ({}, {}))
                raise
            measured = [replace(one, distance=far) for one, far in zip(samples, distances, strict=True)]
            run.log(step, progress(samples), rollouts=[sample.row() for sample in measured])
            run.save(step, lambda: ({}, {}))
            engine.close()
    files = [run.path / "rollouts" / f"step-{step:08d}.parquet" for step in range(1, len(policies) + 1)]
    found = {
        "task": task.name,
        "task_version": task.version,
        "grader_version": GRADER_VERSION,
        "policies": policies,
        "proxy": settings.rewards,
        "gold": settings.gold or task.score or task.name,
        **frontier(
            dict(zip(policies, map(read_rollouts, files), strict=True)),
            gold="score" if settings.gold is None else f"{REWARDS}{settings.gold}",
        ),
        "dropped_rows": len(dropped),
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

"""What this machine can do for a recipe: speed and memory of each stage, and an estimate of its time.

Floor 6: runs the stages' own functions for a few steps (`measuring.py`) on their real rows and settings, and
multiplies. A stage too slow for that is measured in smaller steps first; what was made smaller is told.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain
from posttrain.config import with_value
from posttrain.data.sources import load_rows
from posttrain.errors import PosttrainError
from posttrain.evals.evaluate import problems_per_step
from posttrain.evals.tasks import GIVEN, ROW_KINDS, find_task
from posttrain.models.files import locate
from posttrain.pipeline.inputs import data_of
from posttrain.pipeline.machine import Machine, measure_machine
from posttrain.pipeline.measuring import GENERATE, UPDATE, Measurement, measure
from posttrain.pipeline.recipe import Recipe, Stage, load_recipe
from posttrain.pipeline.runner import stage_settings
from posttrain.pipeline.stages import STAGE_TYPES, StageFunction
from posttrain.rewards import JUDGE
from posttrain.settings import (
    EvalSettings,
    FrontierSettings,
    ModelSettings,
    ModelStageSettings,
    PolicyStageSettings,
    Settings,
)

BUDGET = 5.0  # seconds of steps in each stage
LENIENCY = 4.0  # a step of many rows takes less than as many steps of one row
PROBE_LENGTH, PROBE_ROWS = 16, 64  # of the first, smallest step: tokens of its completions, rows to read
PENALTY = 1e-6  # a KL coefficient under which every group is trained, whatever it earned


@dataclass(frozen=True, slots=True)
class Shape:
    """The settings that make a step of a stage type large."""

    size: str  # dotted key of its rows, prompts or documents
    samples: str | None = None  # key of the completions of each prompt
    largest: Callable[[int], int] | None = None  # of `size`, by `samples`, where the stage makes its own steps
    smallest: int = 1  # of `size`


SHAPES = {
    "pretrain": Shape("documents_per_step"),
    "sft": Shape("rows_per_step"),
    "rm": Shape("rows_per_step"),
    "dpo": Shape("rows_per_step", smallest=2),  # kto compares each row with another
    "grpo": Shape("prompts_per_step", samples="num_generations"),
    "ppo": Shape("prompts_per_step", samples="num_generations"),
    "eval": Shape("data.rows", samples="num_samples", largest=problems_per_step),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """A phase's tokens per second, and what it worked on."""

    tokens_per_second: float
    tokens: float  # in the phase of one measured step


@dataclass(frozen=True, slots=True)
class StageBench:
    """What one stage can do here. Seconds are of full steps; tokens of an update count prompts too."""

    name: str
    type: str
    model: str
    num_steps: int
    setup_seconds: float
    step_seconds: float
    phase_seconds: dict[str, float]  # generate, update and the rest of a step
    seconds: float  # the whole stage, without checkpoints
    update: Speed | None
    generate: Speed | None
    num_sequences: int  # completions of a measured step; 0 for a stage that samples none
    mean_length: float  # of the completions, in tokens; NaN without any
    update_tflops: float  # of matrix products, what the backward pass recomputes included; NaN without update
    utilisation: float  # the same, as a share of the machine's measured peak
    peak_gib: float  # of the process, while measured
    growth_gib: float  # of the process, since before the stage
    accelerator_gib: float
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """The machine, in each device and precision that the recipe asks for, and the stages."""

    recipe: str
    machines: tuple[Machine, ...]
    stages: tuple[StageBench, ...]
    skipped: tuple[str, ...]  # a sentence for each stage that was not measured

    @property
    def seconds(self) -> float:
        """The estimate for the stages that were measured."""
        return sum(stage.seconds for stage in self.stages)


def bench(recipe: Recipe, runs_dir: str | Path, *, tell: Callable[[str], None] = lambda text: None) -> Bench:
    """Measure the stages of a recipe; no run directory is written, and finished models in it are used.

    Raises what the stages raise about settings, rows and models. `tell` is given a line as each stage begins.
    """
    directory = Path(runs_dir) / recipe.name
    machines: dict[tuple[str, str], Machine] = {}
    stages: list[StageBench] = []
    skipped: list[str] = []
    with _quiet():
        for stage in recipe.stages:
            start, reason = _start_of(recipe, stage, directory)
            if start is None:
                skipped.append(reason)
                continue
            tell(f"measuring {stage.name} ({stage.type}) on {start.name_or_path}")
            try:
                key = (start.device, start.dtype)
                machine = machines[key] = machines.get(key) or measure_machine(start)
                fed = replace(stage, settings=stage_settings(stage, directory))
                stages.append(bench_stage(fed, start, machine))
            except PosttrainError as error:
                stage.name_in(error)
                raise
    return Bench(recipe.name, tuple(dict.fromkeys(machines.values())), tuple(stages), tuple(skipped))


def _start_of(recipe: Recipe, stage: Stage, directory: Path) -> tuple[ModelSettings | None, str]:
    """Return the model to measure a stage on; None, with a sentence, where it is not to be measured."""
    if not isinstance(stage.settings, ModelStageSettings):
        return None, f"{stage.name} ({stage.type}) trains and samples nothing: not measured"
    if isinstance(stage.settings, FrontierSettings):
        return None, f"{stage.name} (frontier) samples as many policies as are kept by then: not measured"
    start = starting_model(recipe, stage, directory)
    if start is None:
        return None, f"{stage.name} was not measured: it starts from a model that is not pre-trained yet"
    missing = [link for link in stage.filled.values() if link.key != "init_from"]
    missing = [link for link in missing if not (directory / link.stage / "artifact").is_dir()]
    if missing:
        what, origin = missing[0].wanted.replace("_", " "), missing[0].stage
        return None, f"{stage.name} was not measured: it needs the {what} of {origin}, which has not run"
    if isinstance(stage.settings, PolicyStageSettings) and JUDGE in stage.settings.rewards:
        return None, f"{stage.name} was not measured: each call of its judge would be made, and perhaps paid for"
    return start, ""


def recipe_of_model(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe of one stage of each kind, with their defaults, on a model; flags are those of a recipe.

    Raises ModelError for a directory that holds no model.
    """
    locate(model)
    stages = "".join(f'[stage.{name}]\ntype = "{name}"\n' for name in ("sft", "grpo", "eval"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "recipe.toml"
        path.write_text(f"[model]\nname_or_path = {_toml_string(model)}\n{stages}", encoding="utf-8")
        return load_recipe(path, overrides, name="bench")


def starting_model(recipe: Recipe, stage: Stage, directory: Path) -> ModelSettings | None:
    """Return the model to measure a stage on: its own, or the nearest one before it that exists; None without one."""
    assert isinstance(stage.settings, ModelStageSettings)
    upstream = {other.name: other for other in recipe.stages}
    source = stage
    while source.init_from and not (directory / source.init_from / "artifact").is_dir():
        source = upstream[source.init_from]
        if source.type == "pretrain":
            return None
    found = stage_settings(source, directory)
    assert isinstance(found, ModelStageSettings)
    return stage.settings.model.model_copy(update={"name_or_path": found.model.name_or_path})


def bench_stage(stage: Stage, model: ModelSettings, machine: Machine) -> StageBench:
    """Measure one stage: its smallest step, then as large a step as the time allows, at best the stage as it is."""
    assert isinstance(stage.settings, ModelStageSettings)
    # The reference's log-probs of all rows would be computed before the first step, and kept.
    settings = with_value(with_value(stage.settings, "model", model), "reference_cache", None)
    work, shape = STAGE_TYPES[stage.type].load(), SHAPES.get(stage.type)
    notes = []
    if stage.init_from and not Path(model.name_or_path).match(f"*/{stage.init_from}/artifact"):
        notes.append(f"measured on {model.name_or_path}: {stage.init_from} has not run")
    rows = _rows_of_steps(settings, shape)
    size = full = min(rows, _largest_step(settings, shape) or rows) if shape else 1
    resized = settings
    if shape:
        few = with_value(settings, "data.rows", min(_value(settings, "data.rows") or PROBE_ROWS, PROBE_ROWS))
        limit = min(_max_length(settings) or PROBE_LENGTH, PROBE_LENGTH)
        least = min(max(shape.smallest, _value(settings, "num_mini_batches") or 1), full)
        smallest = _with_max_length(with_value(few, shape.size, least), limit)
        size = affordable(measure(work, smallest, budget=math.inf, max_steps=1), full, least)
        resized = settings if size == full else with_value(settings, shape.size, size)
    found, length = _measure_within_budget(work, resized, shape, size)
    if not trains(found) and _value(settings, "kl_coef") == 0:
        notes.append("no group of completions earned different rewards: the update was measured with a KL reference")
        resized = with_value(resized, "kl_coef", PENALTY)
        found, length = _measure_within_budget(work, resized, shape, size)
    if size != full and shape:
        whole = measure(work, settings, budget=0.0, max_steps=0)
        found = replace(found, num_steps=whole.num_steps, setup_seconds=whole.setup_seconds)
        notes.append(f"measured with {shape.size} = {size}, not {full}, and multiplied: large steps cost less per row")
    if length:
        notes.append(f"completions were cut at {length} tokens; the estimate takes {_max_length(settings)} for each")
    larger = (rows / found.num_steps if rows > full else full) / size
    grow = _max_length(settings) / length if length else 1.0
    return summarise(stage, resized, found, machine, larger=larger, longer=grow, notes=notes)


def affordable(probe: Measurement, full: int, least: int = 1) -> int:
    """Return how many rows a step may have, from `least` to `full`, given the seconds of a step of `least` rows."""
    phases = probe.steps[0].phases if probe.steps else {}
    slowest = max(*phases.values(), 1e-9)
    return max(least, min(full, int(least * LENIENCY * BUDGET / slowest)))


def trains(found: Measurement) -> bool:
    """Return whether some measured step trained on something, or none had an update at all."""
    updates = [step for step in found.steps if UPDATE in step.phases]
    return not updates or any(step.metrics.get("update/tokens") for step in updates)


def summarise(
    stage: Stage,
    settings: ModelStageSettings,
    found: Measurement,
    machine: Machine,
    *,
    larger: float,
    longer: float,
    notes: Sequence[str],
) -> StageBench:
    """Return the speeds of the measured steps, and the time of steps `larger` times as large and `longer` in tokens.

    An update of some of a step's groups counts as one of all of them.
    """
    steps = found.timed
    generate, update = (_mean([step.phases.get(name, 0.0) for step in steps]) for name in (GENERATE, UPDATE))
    rest = _mean([step.seconds for step in steps]) - generate - update
    sequences = _mean([step.num_sequences for step in steps])
    sampled = _mean([step.num_sequences * step.metrics.get("completions/mean_length", 0.0) for step in steps])
    updates = _mean([step.metrics.get("updates", _value(settings, "num_iterations") or 1) for step in steps])
    trained = updates * _mean([step.metrics.get("update/tokens", 0.0) for step in steps])
    kept = 1.0  # with a reference, what has no advantage is trained on as well
    if not _value(settings, "kl_coef"):
        kept -= _mean([step.metrics.get("frac_reward_zero_std", 0.0) for step in steps])
    notes = list(notes)
    if 0 < kept < 1:
        notes.append(f"{kept:.0%} of the groups were trained on here; the estimate takes all")
    counted = next((step for step in found.steps if step.flops and step.metrics.get("update/tokens")), None)
    tflops = math.nan
    if counted and update:
        per_token = counted.flops / (updates * counted.metrics["update/tokens"])
        tflops = per_token * trained / update / 1e12
    phases = {
        GENERATE: generate * larger * longer,
        UPDATE: update * larger * longer / (kept if trained and kept > 0 else 1.0),
        "rest": rest * larger,
    }
    return StageBench(
        name=stage.name,
        type=stage.type,
        model=settings.model.name_or_path,
        num_steps=found.num_steps,
        setup_seconds=found.setup_seconds,
        step_seconds=sum(phases.values()),
        phase_seconds=phases,
        seconds=found.setup_seconds + found.num_steps * sum(phases.values()),
        update=Speed(trained / update, trained) if trained and update else None,
        generate=Speed(sampled / generate, sampled) if sampled and generate else None,
        num_sequences=round(sequences),
        mean_length=sampled / sequences if sequences else math.nan,
        update_tflops=tflops,
        utilisation=tflops / machine.tflops,
        peak_gib=found.resident_peak / 2**30,
        growth_gib=(found.resident_peak - found.resident_before) / 2**30,
        accelerator_gib=found.accelerator_peak / 2**30,
        notes=tuple(notes),
    )


def _measure_within_budget(
    work: StageFunction, settings: ModelStageSettings, shape: Shape | None, size: int
) -> tuple[Measurement, int]:
    """Return what steps of these settings take, and the tokens at which completions had to be cut, 0 where not."""
    found = measure(work, settings, budget=BUDGET)
    if found.steps or not isinstance(settings, PolicyStageSettings | EvalSettings):
        return found, 0
    if not _max_length(settings):
        return measure(work, settings, budget=math.inf, max_steps=1), 0
    samples = _value(settings, shape.samples) if shape and shape.samples else 1
    waves = math.ceil(size * samples / settings.engine.max_sequences)
    length = max(1, min(found.decoded, _max_length(settings)) // (2 * waves))
    shorter = _with_max_length(settings, length)
    return measure(work, shorter, budget=math.inf, max_steps=2), length


def _rows_of_steps(settings: ModelStageSettings, shape: Shape | None) -> int:
    """Return the rows of a step; where the stage cuts all its rows into steps by itself, all of them."""
    if shape is None:
        return 1
    if shape.largest is None:
        return int(_value(settings, shape.size))
    data = data_of(settings)
    assert data is not None
    kinds = ROW_KINDS[find_task(settings.task).kind] if isinstance(settings, EvalSettings) else ()
    return len(load_rows(data, seed=settings.seed, kinds=kinds))


def _largest_step(settings: Any, shape: Shape) -> int | None:
    """Return the most rows of a step, where the stage cuts its rows into steps by itself."""
    if shape.largest is None:
        return None
    return shape.largest(int(_value(settings, shape.samples)) if shape.samples else 1)


def _value(settings: Any, dotted: str) -> Any:
    """Return one value of the settings; None where they have no such key."""
    for name in dotted.split("."):
        settings = getattr(settings, name, None)
    return settings


def _max_length(settings: Settings) -> int:
    """Return the token limit of completions; 0 for a stage that samples none."""
    if isinstance(settings, EvalSettings) and find_task(settings.task).kind in GIVEN:
        return 0
    return _value(settings, "sampling.max_completion_length") or 0


def _with_max_length(settings: ModelStageSettings, length: int) -> ModelStageSettings:
    """Return the settings with another token limit; unchanged for a stage that samples no completions."""
    return with_value(settings, "sampling.max_completion_length", length) if _max_length(settings) else settings


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _toml_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep notices about rows off the terminal: each stage reads its rows several times, and the run will tell."""
    logger, silent = logging.getLogger(posttrain.__name__), logging.NullHandler()
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)

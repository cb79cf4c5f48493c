"""A recipe: stages in order, each fed by earlier ones, read from one TOML file and its flags.

Floor 6: knows which stages exist and how they hang together; `runner.py` runs them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from posttrain.config import DEFAULT, Entry, flatten, near_match, parse_flags, read_toml, refuse, resolve, under
from posttrain.errors import ConfigError, PosttrainError
from posttrain.evals.tasks import TASKS
from posttrain.pipeline.checks import stage_problems
from posttrain.pipeline.links import Link, find_links
from posttrain.pipeline.stages import STAGE_TYPES
from posttrain.runs.identity import SETTINGS
from posttrain.settings import (
    CompareSettings,
    EvalSettings,
    ModelStageSettings,
    PolicyTrainingSettings,
    PpoSettings,
    RewardSettings,
    Settings,
    StageSettings,
)

SHARED_TABLES = ("model", "data", "sampling")  # their values are defaults of every stage that has such a table
FREE_FIELDS = (  # may change between two parts of a run: they set memory, speed or what is kept, not what is learned
    "max_tokens_per_micro_batch",
    "save_steps",
    "save_total_limit",
    "rollout_trees_saved",
    "keep_policy_steps",
    "allow_weak_reward_model",
    "gold_reward",
    "reward_workers.deadline",
    "reward_workers.processes",
    "reward_workers.max_subprocesses",
    "reward_workers.memory_gb",
    "reward_options.judge.api_key_env",
    "reward_options.judge.max_calls",
    "reward_options.judge.max_total_tokens",
    "reward_options.judge.timeout",
    "reward_options.judge.max_retries",
    "reward_options.judge.concurrency",
    "engine.max_sequences",
    "model.device",
    "model.gradient_checkpointing",
)


OF_REWARDS = {*RewardSettings.model_fields, "reward_model"}  # what a frontier takes over: keys of its policies' stage
OF_SOURCE = {("source",), ("path",), ("held_out",), ("columns",)}  # of shared data: said of its source alone
OF_COMPLETIONS = {("sampling", "max_completion_length"), ("sampling", "stop")}


class RecipeHeader(Settings):
    """The recipe's own keys."""

    name: str = "run"
    """Name of the run: its directory under RUNS_DIR."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every stage that gives none."""


class StageHeader(Settings):
    """The keys of a stage's table that are the pipeline's."""

    type: str
    """Kind of stage."""
    init_from: str | None = None
    """Earlier stage whose model this one starts from."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage with its settings and the earlier stages that it reads."""

    name: str
    type: str
    settings: StageSettings
    origins: Mapping[str, str]  # dotted key -> "default", file:line or flag
    where: str  # file:line of its table
    links: tuple[Link, ...] = ()
    in_recipe: bool = True  # whether flags name it: --stage.NAME.key

    @property
    def init_from(self) -> str | None:
        """The stage whose model this one starts from."""
        return next((link.stage for link in self.links if link.key == "init_from"), None)

    @property
    def filled(self) -> dict[str, Link]:
        """The dotted settings that the output of earlier stages fills."""
        return {link.fills: link for link in self.links if link.fills is not None}

    def origin_of(self, key: str) -> str:
        """Return where a value came from; a table's origin is that of its first written entry."""
        inside = (origin for dotted, origin in self.origins.items() if f"{dotted}.".startswith(f"{key}."))
        return next(inside, DEFAULT)

    def name_in(self, error: PosttrainError) -> None:
        """Let an error that the stage raised say which one it was, and its fix name the settings as the recipe does."""
        if not self.in_recipe:
            return
        error.args = (f"stage {self.name}: {error.args[0]}",)
        if error.fix and not error.fix.startswith("posttrain "):
            error.fix = re.sub(
                rf"--(?=({'|'.join(type(self.settings).model_fields)})\b)", f"--stage.{self.name}.", error.fix
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named run: stages in the order in which they run."""

    name: str
    seed: int
    stages: tuple[Stage, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, name: str | None = None) -> Recipe:
    """Read a recipe file with flags over it; raises ConfigError with every problem at once."""
    problems: list[str] = []
    entries = read_toml(path)
    stage_names = list(dict.fromkeys(entry.key[1] for entry in entries if _in_stage(entry)))
    flags = parse_flags(overrides, problems)
    header = resolve(RecipeHeader, _header_entries(entries + flags, stage_names, problems), problems, where=str(path))
    if not stage_names:
        problems.append(f'{path}: a recipe has stages: stage.sft.type = "sft"')
    seed = header.settings.seed if header else 0
    defaults = [entry for entry in entries + flags if entry.key[0] in SHARED_TABLES]
    if header and header.origins["seed"] != "default":
        defaults.insert(0, Entry(("seed",), seed, header.origins["seed"]))
    stages: dict[str, Stage] = {}
    for stage_name in stage_names:
        own = under(entries, "stage", stage_name) + under(flags, "stage", stage_name)
        inherited = [*defaults, *_of_policies(own, stages)]
        stage = _read_stage(stage_name, own, inherited, stage_names, where=own[0].origin, problems=problems)
        if stage:
            problems.extend(_link_problems(stage, own, stages, stage_names))
            problems.extend(_stage_problems(stage))
            stages[stage_name] = stage
    refuse(list(dict.fromkeys(problems)))
    assert header is not None
    chosen = header.settings.name if header.origins["name"] != "default" else Path(path).stem
    return Recipe(check_name(name or chosen), seed, tuple(stages.values()))


def single_stage(type_name: str, config: str | Path | None, overrides: Sequence[str], *, name: str) -> Recipe:
    """Return the recipe of one stage, named after its type, from a file of its settings (or none) and flags."""
    problems: list[str] = []
    entries = read_toml(config) if config else []
    if any(entry.key[0] == "stage" for entry in entries):
        raise ConfigError(f"{config} is a recipe, not the settings of one stage", fix=f"posttrain run {config}")
    entries = [*entries, *parse_flags(overrides, problems)]
    where = str(config or f"posttrain {type_name}")
    inherited = _of_policies(entries, {})
    resolved = resolve(STAGE_TYPES[type_name].settings, [*inherited, *entries], problems, where=where)
    refuse(problems)
    assert resolved is not None
    stage = Stage(type_name, type_name, resolved.settings, resolved.origins, where, in_recipe=False)
    refuse(list(_stage_problems(stage)))
    return Recipe(check_name(name), resolved.settings.seed, (stage,))


def check_name(name: str) -> str:
    """Return the name of a run if it can be a directory's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"a run is named with letters, digits, dots, dashes and underscores, not {name!r}")
    return name


def frozen_settings(stage: Stage) -> dict[str, Any]:
    """Return what must not change between two parts of a run, as plain JSON."""
    content = stage.settings.model_dump(mode="json")
    for dotted in FREE_FIELDS:
        *tables, field = dotted.split(".")
        table = content
        for name in tables:
            table = table.get(name, {})
        table.pop(field, None)
    if stage.init_from:
        content["model"]["name_or_path"] = None
    return {"type": stage.type, "init_from": stage.init_from, "settings": content}


def _in_stage(entry: Entry) -> bool:
    return entry.key[0] == "stage" and (len(entry.key) > 2 or (len(entry.key) == 2 and entry.value == {}))


def _header_entries(entries: Sequence[Entry], stage_names: Sequence[str], problems: list[str]) -> list[Entry]:
    """Return the entries of the recipe's own keys; report keys that are none of its and stages that it lacks."""
    kept = []
    for entry in entries:
        top = entry.key[0]
        if top == "stage":
            if not _in_stage(entry):
                problems.append(f'{entry.origin}: a stage is a table: stage.sft.type = "sft"')
            elif entry.key[1] not in stage_names:
                problems.append(f"{entry.origin}: no stage {entry.key[1]} here{near_match(entry.key[1], stage_names)}")
        elif top in RecipeHeader.model_fields:
            kept.append(entry)
        elif top not in SHARED_TABLES:
            dotted = ".".join(entry.key)
            known = [*RecipeHeader.model_fields, *SHARED_TABLES, "stage"]
            inside = [f"stage.{stage}.{dotted}" for stage in stage_names]
            problems.append(f"{entry.origin}: unknown key {dotted}{near_match(dotted, [*known, *inside], known=known)}")
        elif entry.key == ("data", "split"):
            problems.append(f"{entry.origin}: a split belongs to one stage: write data.split in that stage's table")
    return kept


def _read_stage(
    name: str,
    own: Sequence[Entry],
    shared: Sequence[Entry],
    stage_names: Sequence[str],
    *,
    where: str,
    problems: list[str],
) -> Stage | None:
    """Build one stage from what it shares with others and its own table; None where something is wrong with it."""
    if not re.fullmatch(r"[a-z0-9_]+", name):
        problems.append(f"{where}: a stage is named with small letters, digits and underscores, not {name!r}")
    header = resolve(
        StageHeader, [entry for entry in [*shared, *own] if _is_header(entry)], problems, where=f"{where}: stage {name}"
    )
    if header is None:
        return None
    kind = STAGE_TYPES.get(header.settings.type)
    if kind is None:
        known = f"{near_match(header.settings.type, list(STAGE_TYPES), known=list(STAGE_TYPES))}"
        problems.append(f"{header.origins['type']}: no stage type {header.settings.type!r}{known}")
        return None
    usable = [entry for entry in _shared_data(shared, own) if entry.key[0] in kind.settings.model_fields]
    written = [entry for entry in own if not _is_header(entry) and entry.key]
    resolved = resolve(kind.settings, [*usable, *written], problems, where=f"{where}: stage {name}")
    if resolved is None:
        return None
    return Stage(
        name,
        header.settings.type,
        resolved.settings,
        resolved.origins,
        where,
        find_links(resolved.settings, header.settings.init_from, stage_names),
    )


def _shared_data(shared: Sequence[Entry], own: Sequence[Entry]) -> list[Entry]:
    """Return the shared entries without those of a source of data that is not the stage's own.

    A stage names its source, or a task that has one.
    """
    source, task = _last(own, "data", "source"), _last(own, "task")
    if source is None and task in TASKS:
        source = TASKS[task].source
    if not source or source == _last(shared, "data", "source") or _last(shared, "data", "source") is None:
        return list(shared)
    return [entry for entry in shared if entry.key[0] != "data" or entry.key[1:2] not in OF_SOURCE]


def _last(entries: Sequence[Entry], *key: str) -> Any:
    """Return the value that counts of those that entries give a key, None where there is none."""
    return next((entry.value for entry in reversed(entries) if entry.key == key), None)


def _of_policies(own: Sequence[Entry], earlier: Mapping[str, Stage]) -> Iterator[Entry]:
    """Yield what a frontier takes over from the stage whose policies it follows, with the origins there.

    That is the start, the model's other settings, what ends a completion, and the rewards unless it writes its own.
    """
    name = _last(own, "policies")
    written = {entry.key[0] for entry in own}
    stage = earlier.get(str(name))
    file = Path(str(name)) / SETTINGS
    if stage is not None:
        content = stage.settings.model_dump(mode="json")
        if stage.init_from:
            yield Entry(("init_from",), stage.init_from, stage.where)
    elif file.is_file():
        content = json.loads(file.read_bytes())
    else:
        return
    for key, value in flatten(content):
        if key[0] == "model" or key in OF_COMPLETIONS or (key[0] in OF_REWARDS and "rewards" not in written):
            origin = str(file) if stage is None else stage.origin_of(".".join(key))
            if origin != DEFAULT:
                yield Entry(key, value, origin)
            elif key[0] == "rewards":  # the one default that a frontier does not have too
                yield Entry(key, value, f"default of {name}")


def _is_header(entry: Entry) -> bool:
    return len(entry.key) > 0 and entry.key[0] in StageHeader.model_fields


def _stage_problems(stage: Stage) -> Iterator[str]:
    """Yield what is wrong with a stage by itself, after its line or flag."""
    for key, error in stage_problems(stage.settings, filled=stage.filled):
        stage.name_in(error)
        origin = stage.origin_of(key)
        yield f"{stage.where if origin == DEFAULT else origin}: {error}"


def _compares_completions(settings: StageSettings) -> bool:
    match settings:
        case EvalSettings(num_samples=1) | PpoSettings(num_generations=1):
            return False
    return True


def _keeps_policies(settings: StageSettings) -> bool:
    return isinstance(settings, PolicyTrainingSettings) and settings.keep_policy_steps > 0


def _link_problems(
    stage: Stage, own: Sequence[Entry], earlier: Mapping[str, Stage], stage_names: Sequence[str]
) -> Iterator[str]:
    """Yield what is wrong with the stages that a stage reads: each must come earlier and make the right thing."""
    lines = {".".join(entry.key): entry.origin for entry in own}
    before = stage_names[: stage_names.index(stage.name)]
    for link in stage.links:
        name = link.stage
        needs = f"{lines.get(link.key, stage.where)}: stage {stage.name} needs {name}"
        if name not in stage_names:
            yield f"{needs}, and there is no such stage{near_match(name, before)}"
        elif name not in before:
            yield f"{needs}, which must come before it"
        elif name in earlier and link.wanted not in STAGE_TYPES[earlier[name].type].produces:
            yield f"{needs}, which is of type {earlier[name].type} and makes no {link.wanted.replace('_', ' ')}"
        elif name in earlier and link.wanted == "completions" and not _compares_completions(earlier[name].settings):
            setting = "num_samples" if isinstance(earlier[name].settings, EvalSettings) else "num_generations"
            yield f"{needs}, which has {setting} = 1: one completion of a problem makes no pair"
        elif name in earlier and link.wanted == "policies" and not _keeps_policies(earlier[name].settings):
            yield f"{needs}, which keeps no policies; expected stage.{name}.keep_policy_steps = 10"
    if stage.init_from and not isinstance(stage.settings, ModelStageSettings):
        yield f"{lines['init_from']}: a stage of type {stage.type} starts from no model"
    if stage.init_from and (named := [entry for entry in own if entry.key == ("model", "name_or_path")]):
        yield f"{named[0].origin}: the model comes from init_from = {stage.init_from}; remove one of the two"
    if isinstance(stage.settings, CompareSettings) and stage.settings.baseline not in stage.settings.models:
        near = near_match(stage.settings.baseline, stage.settings.models, known=stage.settings.models)
        yield f"{lines.get('baseline', stage.where)}: the baseline {stage.settings.baseline} is none of models{near}"

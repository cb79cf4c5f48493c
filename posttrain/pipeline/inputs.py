"""What a stage reads from disk besides earlier stages: its data files and its starting model, found and hashed.

Floor 6: part of a stage's fingerprint, so that a finished stage is done again where its inputs changed.
"""

import hashlib
from collections.abc import Container, Iterable
from pathlib import Path

from posttrain.data.fewshot import example_settings
from posttrain.data.files import split_files
from posttrain.data.held_out import split_to_read
from posttrain.data.named import SOURCES
from posttrain.evals.tasks import find_task, task_data
from posttrain.models.files import base_of_adapter, is_adapter, locate
from posttrain.runs.artifact import MANIFEST
from posttrain.runs.durable import hash_file
from posttrain.runs.policies import kept_policies
from posttrain.settings import (
    DataSettings,
    EvalSettings,
    FrontierSettings,
    ModelSettings,
    ModelStageSettings,
    PolicyStageSettings,
    PpoSettings,
    PretrainSettings,
    RewardSettings,
    RowStageSettings,
    ScoredStageSettings,
    StageSettings,
    TaskSettings,
)

MODEL_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".safetensors"})  # config, tokenizer, weights
HASHED_BYTES = 2**28  # of a larger file without a manifest, size and time of change stand for the content


def data_of(settings: StageSettings) -> DataSettings | None:
    """Return where a stage's rows come from; those of an evaluation are its task's. Raises ConfigError for no task."""
    if isinstance(settings, TaskSettings):
        return task_data(find_task(settings.task), settings.data)
    return settings.data if isinstance(settings, RowStageSettings | PolicyStageSettings) else None


def data_files(data: DataSettings) -> list[Path]:
    """Return the local files that rows and few-shot examples are read from; none for a source on the Hub or generated.

    Raises DataError for a directory without the split, ConfigError where there is none to take examples from.
    """
    if data.num_fewshot:
        return data_files(data.model_copy(update={"num_fewshot": 0})) + data_files(example_settings(data))
    if data.source in SOURCES and data.path is None:
        return []
    path = Path(data.path or data.source)
    return split_files(path, split_to_read(data)) if path.is_dir() else [path]


def input_hashes(settings: StageSettings, *, filled: Container[str] = ()) -> dict[str, str]:
    """Return a hash for each input: data, model, reward model, reference, policies, reward file, critic and template.

    `filled` are the dotted settings that earlier stages fill: what these name is not there yet. Raises ModelError or
    DataError where one is missing.
    """
    hashes: dict[str, str] = {}
    if "data.source" not in filled and (data := data_of(settings)) and (files := data_files(data)):
        hashes["data"] = _joined(hash_file(file).sha256 for file in files)
    if isinstance(settings, ModelStageSettings) and not isinstance(settings, PretrainSettings):
        if "model.name_or_path" not in filled and (model := model_hash(settings.model)):
            hashes["model"] = model
        if (template := settings.model.chat_template) and Path(template).is_file():
            hashes["chat_template"] = hash_file(Path(template)).sha256
    if isinstance(settings, ScoredStageSettings) and settings.reward_model is not None and "reward_model" not in filled:
        scorer = model_hash(ModelSettings(name_or_path=settings.reward_model))
        hashes |= {} if scorer is None else {"reward_model": scorer}
    if isinstance(settings, EvalSettings) and settings.reference is not None and "reference" not in filled:
        reference = model_hash(ModelSettings(name_or_path=settings.reference))
        hashes |= {} if reference is None else {"reference": reference}
    if isinstance(settings, FrontierSettings) and "policies" not in filled:
        kept = kept_policies(Path(settings.policies)).values()
        hashes["policies"] = _joined(hash_file(policy / MANIFEST).sha256 for policy in kept)
    if isinstance(settings, RewardSettings) and settings.reward_file is not None:
        hashes["reward_file"] = hash_file(Path(settings.reward_file)).sha256
    if isinstance(settings, PpoSettings) and (name := settings.critic.name_or_path) is not None:
        critic = model_hash(ModelSettings(name_or_path=name))
        hashes |= {} if critic is None else {"critic": critic}
    return hashes


def model_hash(model: ModelSettings) -> str | None:
    """Return a hash of a model's local files, an adapter's with its base's; None for a model on the Hub."""
    directory = locate(model.name_or_path)
    if directory is None:
        return None
    if (directory / MANIFEST).is_file():
        own = hash_file(directory / MANIFEST).sha256
    else:
        files = sorted(file for file in directory.iterdir() if file.suffix in MODEL_SUFFIXES and file.is_file())
        own = _joined(f"{file.name} {_content_mark(file)}" for file in files)
    if not is_adapter(directory):
        return own
    base = model_hash(ModelSettings(name_or_path=base_of_adapter(directory)))
    return _joined([own, base or ""])


def _content_mark(file: Path) -> str:
    stat = file.stat()
    return hash_file(file).sha256 if stat.st_size <= HASHED_BYTES else f"{stat.st_size} bytes of {stat.st_mtime_ns}"


def _joined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

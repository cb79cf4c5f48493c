"""Finding a model's files and refusing bad ones before anything is loaded: no Hub call for paths, no pickle, no code.

Floor 1: knows the Hugging Face layout on disk; loads no tensor.
"""

import json
from pathlib import Path
from typing import Any

import posttrain.nano
from posttrain.errors import ModelError

WEIGHTS, INDEX, ADAPTER_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
REWARD_REPORT = "reward_model.json"  # beside the weights of a reward model: what held-out pairs say of it
HEAD = "score"  # the name that transformers' classification models have for the score head
SAVED_HEAD = f"base_model.model.{HEAD}.weight"  # and peft for its weights in the file of an adapter
CODE_KEYS = ("auto_map", "_attn_implementation_internal")  # transformers would fetch and run code for them


def locate(name_or_path: str) -> Path | None:
    """Return the checked directory of a model or adapter, or None where the name is one on the Hub.

    Raises ModelError for a directory that is missing or incomplete, holds only pickled weights, or asks for code.
    """
    if name_or_path == "nano":
        directory = Path(posttrain.nano.__file__).parent / "base"
        if not (directory / CONFIG).is_file():
            raise ModelError(f"the embedded base is not in {directory}", fix="posttrain pretrain")
    elif is_path(name_or_path):
        directory = Path(name_or_path).expanduser()
    else:
        return None
    _check_directory(directory)
    return directory


def is_path(name: str) -> bool:
    """Return whether a name means a local directory: it exists, or is no `name` or `owner/name` of the Hub."""
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        return True
    return name.count("/") > 1 or ("/" in name and path.parent.is_dir())


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds a peft adapter rather than a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def base_of_adapter(directory: Path) -> str:
    """Return the name or path of the base that an adapter was trained on."""
    base = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{directory / ADAPTER_CONFIG} names no base model", fix='"base_model_name_or_path": "..."')
    return base


def refuse_classifier(name: str) -> None:
    """Raise ModelError for a reward model on disk: read as a language model, it would lose its score head."""
    directory = locate(name)
    if directory is not None and _classifies(directory):
        raise ModelError(f"{directory} is a reward model, which writes nothing", fix='name_or_path = "nano"')


def require_classifier(name: str) -> None:
    """Raise ModelError for a model on disk that is no reward model: its score head would be random."""
    directory = locate(name)
    if directory is not None and not _classifies(directory):
        raise ModelError(
            f"{directory} is a language model, which scores nothing: expected a reward model",
            fix=f"posttrain rm --model.name_or_path {name}  # makes one: runs/rm/rm/artifact",
        )


def _classifies(directory: Path) -> bool:
    if is_adapter(directory):
        return read_json(directory / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS"
    architectures = read_json(directory / CONFIG).get("architectures") or []
    return any(architecture.endswith("ForSequenceClassification") for architecture in architectures)


def reward_report(name: str) -> dict[str, Any] | None:
    """Return what a reward model was measured to be when it was made; None where it comes without that."""
    directory = locate(name)
    if directory is None or not (directory / REWARD_REPORT).is_file():
        return None
    return read_json(directory / REWARD_REPORT)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises ModelError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        parent = directory.parent
        beside = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())[:8] if parent.is_dir() else []
        known = f"; beside it: {', '.join(beside)}" if beside else ""
        raise ModelError(f"model directory {directory} does not exist{known}", fix='name_or_path = "nano"')
    if is_adapter(directory):
        _check_weights(directory, ADAPTER_WEIGHTS, pickled="adapter_model.bin")
        return
    if not (directory / CONFIG).is_file():
        found = ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
        message = f"{directory} has neither {CONFIG} nor {ADAPTER_CONFIG}; it holds {found}"
        of_stage = directory / "artifact"
        raise ModelError(message, fix=f"name its artifact: {of_stage}" if of_stage.is_dir() else None)
    config = read_json(directory / CONFIG)
    if present := [key for key in CODE_KEYS if key in config]:
        raise ModelError(
            f"{directory / CONFIG} has {' and '.join(present)}: the model asks to run code that comes with it, refused",
            fix=f"remove the key from {CONFIG}, if transformers itself knows model_type {config.get('model_type')!r}",
        )
    _check_weights(directory, WEIGHTS, pickled="pytorch_model*.bin")


def _check_weights(directory: Path, name: str, *, pickled: str) -> None:
    if (directory / name).is_file():
        return
    if (directory / INDEX).is_file():
        shards = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
        missing = [shard for shard in shards if not (directory / shard).is_file()]
        if missing or not shards:
            raise ModelError(
                f"{directory / INDEX} lists {len(shards)} shards, missing: {', '.join(missing) or 'all'}",
                fix=f"hf download <owner/name> {' '.join(missing)} --local-dir {directory}",
            )
        return
    if any(directory.glob(pickled)):
        raise ModelError(
            f"{directory} has its weights only as pickle (.bin), which can run code when read: refused",
            fix="convert them to safetensors, or download the revision that has them",
        )
    raise ModelError(f"{directory} has no weights: expected {name}")

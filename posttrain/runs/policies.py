"""The policies that a training stage keeps on its way: each a sealed directory with a model that loads by itself.

Floor 1: knows directories and steps, not what a model is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, StorageError
from posttrain.runs import durable
from posttrain.runs.artifact import MANIFEST, publish_artifact
from posttrain.runs.checkpoint import step_directories
from posttrain.runs.manifest import ManifestError, verify

POLICIES = "policies"  # in a stage's directory


def keep_policy(stage: Path, step: int, write: Callable[[Path], None], header: Mapping[str, Any]) -> None:
    """Let `write` fill policies/step-<step> of a stage's directory: whole under that name, or not there at all."""
    durable.make_directory(stage / POLICIES)
    publish_artifact(stage / POLICIES / f"step-{step:08d}", write, {**header, "step": step})


def drop_policies_after(stage: Path, step: int) -> None:
    """Delete what is half written, and the policies of later steps: a resume makes them again."""
    directory = stage / POLICIES
    if directory.is_dir():
        durable.sweep(directory)
    for later, policy in step_directories(directory):
        if later > step:
            durable.remove_tree(policy)


def kept_policies(stage: Path) -> dict[int, Path]:
    """Return the directories of the policies that a stage has kept, by step, in order.

    Raises DataError where there is none, StorageError for one that is not as it was written.
    """
    found = dict(sorted(step_directories(stage / POLICIES)))
    if not found:
        fix = f"rm -r {stage}  # then run it again with keep_policy_steps = 10 in its table"
        raise DataError(f"{stage} keeps no policies: expected {stage / POLICIES}/step-...", fix=fix)
    for path in found.values():
        try:
            verify(path, MANIFEST)
        except ManifestError as error:
            fix = f"restore it from a copy, or rm -r {stage} and run it again"
            raise StorageError(f"the policy {path} is damaged: {error}", fix=fix) from None
    return found

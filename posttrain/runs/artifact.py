"""An artifact: a directory that one stage publishes whole and others read, sealed by posttrain.json.

Floor 1: knows files, not what they hold.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import StorageError
from posttrain.runs import durable
from posttrain.runs.manifest import ManifestError, file_names, verify, write_manifest

MANIFEST = "posttrain.json"


def publish_artifact(final: Path, write: Callable[[Path], None], header: Mapping[str, Any]) -> Path:
    """Let `write` fill a temporary directory, seal it and give it its name; an intact artifact there is kept.

    A damaged one is replaced. Raises StorageError when the disk is full, also under a foreign writer.
    """
    if final.is_dir():
        try:
            verify(final, MANIFEST)
        except ManifestError:
            durable.remove_tree(final)
        else:
            return final
    temporary = durable.temporary_directory(final.parent, final.name)
    try:
        with durable.storage_errors(temporary):
            write(temporary)
            digests = {name: durable.hash_file(temporary / name) for name in sorted(file_names(temporary))}
            write_manifest(temporary, MANIFEST, digests, header)
            durable.publish_directory(temporary, final)
    except Exception:
        durable.discard(temporary)
        raise
    return final


def verify_artifact(path: Path) -> dict[str, Any]:
    """Return an artifact's manifest after checking every file; raises StorageError naming the one that is wrong."""
    try:
        return verify(path, MANIFEST)
    except ManifestError as error:
        raise StorageError(
            f"the artifact {path} is damaged: {error}",
            fix=f"rm {path.parent / 'result.json'}  # the same command then publishes it anew from the last checkpoint",
        ) from None

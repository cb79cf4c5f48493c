"""A manifest names every file of a directory with its size and sha256, and seals itself with its own hash.

Floor 1: knows directories of files, not what they hold. It detects damage; it does not prove who wrote it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.runs import durable
from posttrain.runs.durable import Digest

SCHEMA = 1


class ManifestError(Exception):
    """A directory is not what its manifest says; the message names the file."""


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, name: str, files: Mapping[str, Digest], header: Mapping[str, Any]) -> str:
    """Write the manifest of a temporary directory as its last file, and return the seal."""
    content = {
        "schema": SCHEMA,
        **header,
        "files": [{"path": path, "size": digest.size, "sha256": digest.sha256} for path, digest in files.items()],
    }
    seal = _seal(content)
    durable.create_file(directory / name, [durable.json_bytes({**content, "sha256": seal})])
    return seal


def _read_sealed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("sha256")
        sealed = _seal(content)
    except FileNotFoundError:
        raise ManifestError(f"{path.name} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path.name} is unreadable ({type(error).__name__})") from None
    if seal != sealed:
        raise ManifestError(f"{path.name} was changed after it was written")
    if content.get("schema") != SCHEMA:
        raise ManifestError(f"{path.name} has schema {content.get('schema')}; this version reads {SCHEMA}")
    return {**content, "sha256": seal}


def verify(directory: Path, name: str) -> dict[str, Any]:
    """Return the manifest after checking every file it lists, and that there is no other; else raise ManifestError."""
    manifest = _read_sealed(directory / name)
    expected = {entry["path"]: Digest(entry["size"], entry["sha256"]) for entry in manifest["files"]}
    present = file_names(directory) - {name}
    if missing := sorted(expected.keys() - present):
        raise ManifestError(f"{missing[0]} is missing")
    if foreign := sorted(present - expected.keys()):
        raise ManifestError(f"{foreign[0]} is not in {name}")
    for path, digest in expected.items():
        try:
            found = durable.hash_file(directory / path)
        except OSError as error:
            raise ManifestError(f"{path} is unreadable ({error.strerror})") from None
        if found.size != digest.size:
            raise ManifestError(f"{path} has {found.size} bytes instead of {digest.size}")
        if found.sha256 != digest.sha256:
            raise ManifestError(f"{path} has another sha256 than {name} says")
    return manifest


def file_names(directory: Path) -> set[str]:
    """Return the relative names of everything in a directory and its subdirectories that is not a directory."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}

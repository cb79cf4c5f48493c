"""Whose directory is this: a new one, the same run's, another run's, or nothing of ours.

Floor 1: knows settings and a fingerprint of what decides the result. settings.json is for readers; run.json, written
after it, is what makes a directory a run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError
from posttrain.runs import durable
from posttrain.runs.lock import LOCK
from posttrain.settings import StageSettings

RUN, SETTINGS = "run.json", "settings.json"
_FIX = "restore the settings, choose another run directory, or delete this run with --overwrite"


def refuse_foreign(path: Path) -> None:
    """Raise ConfigError for a file, or a directory with content that no run wrote; nothing is changed."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; expected a run directory", fix="choose another run directory")
    if not path.is_dir():
        return
    unborn = {LOCK, SETTINGS}  # what a run that died at once leaves
    foreign = [child.name for child in path.iterdir() if child.name not in unborn]
    foreign = [name for name in foreign if not name.startswith((durable.TEMPORARY, durable.TRASH))]
    # Looked for after the listing: another process may have made this its run meanwhile, run.json before all else.
    if foreign and not (path / RUN).is_file():
        raise ConfigError(
            f"{path} is not a run directory: it has {sorted(foreign)[0]} and no {RUN}",
            fix="choose another run directory",
        )


def claim(path: Path, settings: StageSettings, fingerprint: str) -> list[str]:
    """Make a locked directory the run of this fingerprint, and return the settings that changed without touching it.

    Raises ConfigError, naming what changed, when it is the run of another fingerprint.
    """
    resolved = settings.model_dump(mode="json")
    if not (path / RUN).is_file():
        durable.write_json(path / SETTINGS, resolved)
        stage = type(settings).__name__.removesuffix("Settings").lower()
        durable.write_json(path / RUN, {"schema": 1, "stage": stage, "fingerprint": fingerprint})
        return []
    changed = _changes(_read(path / SETTINGS), resolved)
    if _read(path / RUN).get("fingerprint") != fingerprint:
        what = "; ".join(changed) or "something outside its settings: the data, the starting model or the code"
        raise ConfigError(f"{path} is another run; changed: {what}", fix=_FIX)
    if changed:
        durable.write_json(path / SETTINGS, resolved)
    return changed


def recorded_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of the run in a directory: None where there is no run, "" where it cannot be read."""
    if not (path / RUN).is_file():
        return None
    try:
        _read(path / SETTINGS)
        return str(_read(path / RUN).get("fingerprint"))
    except ConfigError:
        return ""


def clear(path: Path) -> None:
    """Delete a run from its locked directory; run.json goes last, so that a half-deleted run is still seen as one."""
    children = sorted(path.iterdir(), key=lambda child: child.name == RUN)
    for child in children:
        if child.name != LOCK:
            durable.remove_tree(child)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is unreadable", fix="restore it from a copy, or delete this run with --overwrite")
    return content


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, now = _flat(old), _flat(new)
    names = sorted(name for name in before | now if before.get(name) != now.get(name))
    return [f"{name} was {json.dumps(before.get(name))}, is {json.dumps(now.get(name))}" for name in names]

"""What a run was computed with: versions, machine, source revision and command, for the record.

Floor 1: reads installed metadata, so that it loads no library.
"""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from posttrain.kernels.library import compiler_version

PACKAGES = (
    *("posttrain", "torch", "transformers", "tokenizers", "peft", "bitsandbytes"),
    *("safetensors", "numpy", "pyarrow"),
)


def describe_environment(seed: int) -> dict[str, Any]:
    """Return the record that a run keeps as environment.json."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "compiler": compiler_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "git_revision": _git_revision(Path(__file__).parent),
        "seed": seed,
        "command": command_line(),
    }


def command_line() -> str:
    """Return the command that started this process, as one would type it."""
    program = Path(sys.argv[0])
    ours = program.name == "posttrain" or program.parts[-3:] == ("posttrain", "cli", "__main__.py")
    shown = ["posttrain"] if ours else ["python", sys.argv[0]]
    return shlex.join([*shown, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision(folder: Path) -> str | None:
    """Return the commit of this source, with -dirty when it was changed; None for an installed copy."""
    try:
        git = ["git", "-C", str(folder)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        subprocess.run([*git, "ls-files", "--error-unmatch", "environment.py"], **options)
        return subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

"""A user's file of reward functions: what it offers, read without running it, and the function itself, loaded.

Floor 3. The file is trusted code that the user's own settings name by its path; it is loaded in worker processes only.
"""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, RewardError

MODULE = "posttrain_reward_file"  # the name that the file has as a module


def public_functions(file: str) -> list[str]:
    """Return the functions that a file defines at its top and that do not begin with an underscore.

    Raises ConfigError for a file that is not there, is not Python or defines none.
    """
    path = Path(file)
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise ConfigError(f"reward_file: cannot read {file}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"reward_file: {file}{line} is not Python: {error.args[0]}") from error
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [name for name in names if not name.startswith("_")]
    if not found:
        raise ConfigError(f"reward_file: {file} defines no function whose name begins without an underscore")
    return found


def load_function(file: str, name: str) -> Callable[..., Any]:
    """Import the file and return its function; its directory can be imported from, as if it were run as a script."""
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward_file must be a Python file that ends in .py, not {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise RewardError(f"reward_file cannot be loaded: {describe(error, file)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RewardError(f"{file} has no function {name} once it is loaded")
    return function


def describe(error: BaseException, file: str) -> str:
    """Return an exception in words, with the line of the user's file that it came through last."""
    path = str(Path(file).resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    place = f" ({Path(file).name}:{lines[-1]})" if lines else ""
    text = str(error)
    return f"{type(error).__name__}{f': {text[:500]}' if text else ''}{place}"

"""The process that a reward function runs in: `python -m posttrain.rewards.worker_process`.

Floor 3. Reads one JSON object a line and answers with one. What the function prints goes to stderr; its own ways to
write and read are not those of the protocol, and a copy of the process that it forks never answers.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from posttrain.errors import RewardError
from posttrain.rewards import OPTION_REWARDS
from posttrain.rewards.failures import Failed
from posttrain.rewards.scoring import checked
from posttrain.rewards.signatures import Adapted, adapt
from posttrain.rewards.user_files import describe, load_function
from posttrain.settings.rewards import RewardOptions


def main() -> None:
    """Load the function that the first line names, and score what the following ones hold until there are no more."""
    die_with_parent()
    requests, replies = _own_channels()
    pid = os.getpid()
    for line in requests:
        message = json.loads(line)
        if "load" in message:
            task = message["load"]
            reply, adapted = _load(task)
        else:
            reply = _score(task, adapted, message["arguments"])
        if os.getpid() != pid:
            os._exit(0)  # a fork that came back from the function
        _write(replies, {"id": message["id"], **reply})


def die_with_parent() -> None:
    """Let the kernel end this process with its parent, or watch for that where the kernel cannot."""
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory ends, this process goes before the trainer
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _own_channels() -> tuple[Any, int]:
    """Take the protocol's two pipes away from stdin and stdout: user code then reads nothing, and prints to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _load(task: Mapping[str, Any]) -> tuple[dict[str, Any], Adapted | None]:
    name, file = task["name"], task["file"]
    try:
        _limit_memory(task["memory_gb"])
        if file is None:
            options = RewardOptions.model_validate({name: task["options"]})
            return {"columns": None}, Adapted("TRL", None, _built_in(name, options))
        adapted = adapt(name, load_function(file, name), partial(_raised, file=file))
    except RewardError as error:
        return {"refused": str(error)}, None
    columns = None if adapted.columns is None else sorted(adapted.columns)
    return {"form": adapted.form, "columns": columns}, adapted


def _built_in(name: str, options: RewardOptions) -> Any:
    function = partial(OPTION_REWARDS[name], getattr(options, name))
    return lambda arguments: function(**arguments)


def _score(task: Mapping[str, Any], adapted: Adapted | None, arguments: dict[str, list[Any]]) -> dict[str, Any]:
    assert adapted is not None
    count = len(arguments["completions"])
    if adapted.columns is not None:
        arguments = {name: values for name, values in arguments.items() if name in adapted.columns}
    try:
        values = checked(task["name"], adapted.call(arguments), count)
    except RewardError as error:
        return {"refused": str(error)}
    except BaseException as error:
        return {"failed": _raised(error, file=task["file"] or "")}
    return {"values": [{"failed": value.reason} if isinstance(value, Failed) else value for value in values]}


def _raised(error: BaseException, *, file: str) -> str:
    return f"raised {describe(error, file)}"


def _limit_memory(gigabytes: float | None) -> None:
    if gigabytes is None:
        return
    import resource

    size = int(gigabytes * 2**30)
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    resource.setrlimit(kind, (size, size))


def _write(descriptor: int, reply: Mapping[str, Any]) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()

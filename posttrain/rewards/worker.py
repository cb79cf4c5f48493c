"""One process with one reward function in it: asked by JSON lines, killed with all that it started, replaced.

Floor 3: the trainer's side of `worker_process.py`. No pickle, and an environment that holds no keys.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import posttrain
from posttrain.engines import Interrupted
from posttrain.errors import RewardError
from posttrain.settings import RewardWorkerSettings

START_SECONDS = 120.0  # to load the user's file, which may import slow libraries
POLL_SECONDS = 0.05  # between two looks at the stop request and the process
COUNT_SECONDS = 0.1  # between two counts of what the function started
STDERR_CHARACTERS = 400
ENVIRONMENT = (  # the variables of ours that a worker sees: no keys, no tokens
    *("HOME", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "LANG", "LC_ALL", "LC_CTYPE"),
    *("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    *("HF_HOME", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"),
)


class Lost(Exception):
    """The process ended or was killed; the message says why, as a sentence that begins with its verb."""


class Hung(Lost):
    """It was killed because its time was over."""


class Worker:
    """A process that is started when it is first needed, and again after it was lost.

    It dies with the thread that started it: `task` is what `worker_process` is to load.
    """

    def __init__(self, task: Mapping[str, Any], settings: RewardWorkerSettings, stopping: Callable[[], bool]) -> None:
        self._task, self._settings, self._stopping = task, settings, stopping
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        self._unread = b""
        self._said = b""  # the end of what the function printed

    def start(self) -> Mapping[str, Any]:
        """Start a process and return what it says of its function.

        Raises RewardError where that cannot be loaded, or is not understood; Lost where the process ends.
        """
        self.close()
        root = str(Path(posttrain.__file__).parents[1])
        variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{posttrain.__name__}.rewards.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**variables, "PYTHONPATH": root, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a group of its own: Ctrl-C does not reach it, one signal ends all it started
        )
        self._unread = self._said = b""
        for pipe in _pipes(self._process):
            os.set_blocking(pipe.fileno(), False)
        return self._exchange(f'"load": {json.dumps(dict(self._task))}', START_SECONDS)

    def score(self, arguments: Mapping[str, list[Any]], seconds: float) -> list[Any]:
        """Return a score for each completion: a number, None, or {"failed": why}.

        Raises Lost where the process ended, RewardError for a return value or a column that cannot be.
        """
        if self._process is None:
            self.start()
        columns = ", ".join(f"{json.dumps(name)}: {_as_json(name, values)}" for name, values in arguments.items())
        reply = self._exchange(f'"arguments": {{{columns}}}', seconds)
        if "failed" in reply:
            return [{"failed": reply["failed"]}] * len(arguments["completions"])
        return list(reply["values"])

    def close(self) -> None:
        """End the process and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in _pipes(process):
            with suppress(OSError):
                pipe.close()

    def _exchange(self, message: str, seconds: float) -> Mapping[str, Any]:
        self._asked += 1
        request = f'{{"id": {self._asked}, {message}}}\n'.encode()
        assert self._process is not None
        try:
            reply = self._reply(self._process, request, seconds)
        except BaseException:
            self.close()  # whatever it is doing, nobody waits for it any more
            raise
        if "refused" in reply:
            raise RewardError(reply["refused"])
        return reply

    def _reply(self, process: "subprocess.Popen[bytes]", request: bytes, seconds: float) -> Mapping[str, Any]:
        """Send the request and return its reply; the clock, the process and the stop request are watched meanwhile."""
        stdin, stdout, stderr = _pipes(process)
        unsent = memoryview(request)
        counted = started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while True:
                ended = process.poll() is not None  # asked first: what it wrote before is then read below
                for key, _ in selector.select(0.0 if ended else POLL_SECONDS):
                    if key.fileobj is stdin:
                        unsent = _send(stdin, unsent)
                    data = b"" if key.fileobj is stdin else _receive(key.fd)
                    if not data and not (key.fileobj is stdin and unsent):
                        selector.unregister(key.fileobj)
                    if key.fileobj is stderr:
                        self._said = (self._said + data)[-STDERR_CHARACTERS:]
                    elif data and (reply := self._whole(data)) is not None:
                        return reply
                now = time.monotonic()
                if self._stopping():
                    raise Interrupted
                if ended:
                    raise Lost(f"ended its process, {_ending(process.returncode)}{self._last_words()}")
                if now - started > seconds:
                    raise Hung(f"took longer than {seconds:g} s and was killed{self._last_words()}")
                if now - counted > COUNT_SECONDS:
                    counted = now
                    if (count := _group_size(process.pid) - 1) > self._settings.max_subprocesses:
                        raise Lost(f"started {count} processes and was killed{self._last_words()}")

    def _whole(self, data: bytes) -> Mapping[str, Any] | None:
        """Return the reply that `data` completes, if it answers the last question."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        replies = (json.loads(line) for line in lines)
        return next((reply for reply in replies if reply["id"] == self._asked), None)

    def _last_words(self) -> str:
        said = " ".join(self._said.decode(errors="replace").split())
        return f"; the last it printed: {said}" if said else ""


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def _send(pipe: IO[bytes], data: memoryview) -> memoryview:
    """Write what the pipe takes and return the rest; nothing is left for a process that is gone."""
    try:
        return data[os.write(pipe.fileno(), data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _receive(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:  # another reader, such as a fork, was quicker
        return b""


def _ending(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}{' (perhaps for lack of memory)' if name == 'SIGKILL' else ''}"


def _group_size(group: int) -> int:
    """Return how many processes a group has; 1 where the system does not say."""
    count = 0
    for entry in os.scandir("/proc") if sys.platform == "linux" else ():
        if entry.name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                stat = Path(entry.path, "stat").read_text(errors="replace")
                count += int(stat.rpartition(")")[2].split()[2]) == group
    return max(count, 1)


def _as_json(name: str, values: list[Any]) -> str:
    try:
        return json.dumps(values, default=_thawed)
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"column {name} cannot be sent to a reward in a process of its own: {error}",
            fix=f"let the function name the columns that it takes, without {name} and without **columns",
        ) from None


def _thawed(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"JSON has no {type(value).__name__}")

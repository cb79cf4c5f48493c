"""SIGTERM and Ctrl-C as a request to stop: a flag that loops poll, never an exception in the middle of a step.

Floor 1: knows the process, not the run. Signals belong to the process, so the flag is the module's.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NOTICE = b"stopping at the next safe point; Ctrl-C again leaves at once\n"
_requested: str | None = None


def stop_request() -> str | None:
    """Return the name of the signal that asked this process to stop, or None."""
    return _requested


def _request_stop(number: int, frame: FrameType | None) -> None:
    global _requested
    if number == signal.SIGINT and _requested:
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # show the cursor that the live panel hid
        os._exit(130)  # durable writes are atomic, so leaving in the middle of one loses nothing older
    if _requested is None:
        with contextlib.suppress(OSError):
            os.write(2, _NOTICE)  # at once: the next safe point may be a minute away, and print is not safe here
    _requested = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """While inside, SIGTERM and SIGINT only set the flag; Ctrl-C after either leaves at once with exit code 130."""
    global _requested
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    _requested = None
    previous = {number: signal.signal(number, _request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _requested = None

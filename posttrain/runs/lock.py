"""One process for each run directory: a lock that the kernel frees when its holder dies, however it dies.

Floor 1: knows a directory. flock works on local disks and on NFS since Linux 2.6.12; not between object stores.
"""

import fcntl
import json
import os
import socket
from pathlib import Path

from posttrain.errors import RunLockedError
from posttrain.runs.durable import storage_error

LOCK = "run.lock"


class RunLock:
    """The lock of a run directory, held from construction until `release`; raises RunLockedError when it is taken."""

    def __init__(self, directory: Path) -> None:
        path = directory / LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._descriptor)
            os.close(self._descriptor)
            raise RunLockedError(
                f"{directory} is in use by {holder}; nothing was changed",
                fix="wait for it, stop it with Ctrl-C, or choose another run directory",
            ) from None
        except OSError as error:
            raise storage_error(error, path) from error
        # A forked child shares the lock; it must not keep it when this process is killed.
        os.register_at_fork(after_in_child=self._close)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Free the lock; the file stays, since deleting it would let two processes hold two locks."""
        self._close()


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
